"""The vectors of a corpus, computed once for a model's weights and kept in a file: several arms search with them, on
dev and on test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunewright.core.errors import TunewrightError
from tunewright.core.run_folder import write_atomic
from tunewright.tokens.texts import Kind


@dataclass(frozen=True)
class StoredVectors:
    """What searching arms use of a model. ``encode``: texts -> vector_ND; ``file``: for the vectors of the corpus,
    named by all that they depend on; None to keep none."""

    encode: Callable[[Sequence[str], Kind], NDArray[np.float32]]
    file: Path | None = None

    def embed(self, texts: Sequence[str], kind: Kind) -> NDArray[np.float32]:
        """vector_ND of texts, each of length 1. All documents that are asked for are the corpus."""
        if self.file is None or kind == "query":
            return self.encode(texts, kind)
        stored = _read(self.file, len(texts))
        if stored is None:
            stored = self.encode(texts, kind)
            with suppress(TunewrightError):  # a full disk costs the file, not the run
                write_atomic(self.file, _to_bytes(stored))
        return stored


def _to_bytes(vector_ND: NDArray[np.float32]) -> bytes:
    from safetensors.numpy import save

    return save({"vector_ND": np.ascontiguousarray(vector_ND)})


def _read(file: Path, count: int) -> NDArray[np.float32] | None:
    """None if the file is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        vector_ND = load_file(file)["vector_ND"]
    except (OSError, SafetensorError, KeyError):
        return None
    return vector_ND.astype(np.float32) if len(vector_ND) == count else None
