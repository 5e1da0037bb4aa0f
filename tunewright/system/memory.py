"""Memory that this process may use: the machine's, or less where a container or a batch system limits it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Memory:
    """In bytes. ``free``: what can be taken without anything being killed or swapped out."""

    total: float
    free: float


def available() -> Memory:
    """The memory of the machine, within the limits of this process's control groups."""
    memory = _machine()
    for limit, used in _limits():
        memory = Memory(min(memory.total, limit), min(memory.free, max(0.0, limit - used)))
    return memory


def _machine() -> Memory:
    try:
        kb = _numbers(Path("/proc/meminfo"))
        return Memory(kb["MemTotal"] * 1024, kb["MemAvailable"] * 1024)
    except (OSError, KeyError):
        total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        return Memory(total, total / 2)


def _limits(root: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> Iterator[tuple[float, float]]:
    """(limit, used) of every control group that this process is in, of version 1 or 2. Cached files that the kernel can
    drop at once do not count as used."""
    try:
        lines = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return
    for _, controllers, path in lines:
        if controllers == "":
            group, names = root / path.lstrip("/"), ("memory.max", "memory.current", "inactive_file")
            top = root
        elif "memory" in controllers.split(","):
            top = root / "memory"
            group = top / path.lstrip("/")
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # Inside a container the path is that of the host; its own group is then at the top.
        for folder in [g for g in (group, *group.parents) if g.is_relative_to(top)]:
            if (limit := _limit(folder, *names)) is not None:
                yield limit


def _limit(folder: Path, limit: str, used: str, cached: str) -> tuple[float, float] | None:
    try:
        most = float((folder / limit).read_text(encoding="ascii"))  # "max" where there is no limit
        now = float((folder / used).read_text(encoding="ascii"))
        return most, max(0.0, now - _numbers(folder / "memory.stat").get(cached, 0.0))
    except (OSError, ValueError):
        return None


def _numbers(file: Path) -> dict[str, float]:
    """The numbers of a file of lines ``name value``."""
    parts = [line.split() for line in file.read_text(encoding="ascii").splitlines()]
    return {part[0].rstrip(":"): float(part[1]) for part in parts if len(part) > 1}
