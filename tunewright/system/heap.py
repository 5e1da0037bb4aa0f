"""Memory that is kept after it is freed, by glibc and by oneDNN. Elsewhere (musl, macOS) glibc's part does nothing.

Returning all of it after every step would cost more than the arithmetic: each page must be mapped and cleared again.
Keeping all of it does not do either. Tensors of other sizes do not fit into what is left between those that stay, and
oneDNN keeps machine code of about 1 MB for each of the last 1,024 shapes of a matrix product, while in training every
step has shapes of its own: a process that needs 1.5 GB for a step had taken 5 after two hundred steps.
"""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import dataclass
from pathlib import Path

GROWTH = 1.5  # times what a step needs: from there freed memory is returned
SHAPES = "128"  # that oneDNN keeps code for: a step needs about 40; with fewer, it is made anew in every layer


@dataclass(frozen=True)
class Kept:
    """How much this process may hold, in GB. ``measured``: since freed memory was last returned."""

    limit: float = 0.0
    measured: bool = False


def keep() -> None:
    """From now on, keep freed memory; called before the first matrix product, when oneDNN reads its settings."""
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # the second is that of torch's own cache
        os.environ.setdefault(name, SHAPES)
    if (libc := _glibc()) is not None:
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def release() -> None:
    """Return freed memory to the operating system: between stages and large batches, whose tensors have other sizes."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def bounded(kept: Kept) -> Kept:
    """Called between steps: return freed memory once the process holds `GROWTH` times what it held after one step."""
    held = resident_gb()
    if not kept.measured:
        return Kept(max(kept.limit, GROWTH * held), measured=True)
    if held <= kept.limit:
        return kept
    release()
    return Kept(kept.limit)


def resident_gb() -> float:
    """What this process holds; 0 where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return 0.0
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e9


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc" else None
