"""Rendered rows in the run folder, keyed by the hash of all that decides them: a run that goes on renders nothing twice."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tunewright.core.errors import TunewrightError
from tunewright.core.run_folder import write_atomic
from tunewright.data.examples import Example
from tunewright.tokens import rendering
from tunewright.tokens.rendering import Rendered, Template


def render_rows(
    template: Template, examples: Sequence[Example], rows: Sequence[int], limit: int, drop: bool, cache: Path
) -> tuple[list[Rendered], list[int]]:
    """`rendering.render_rows` through the folder ``cache``. A file that cannot be read is made again."""
    file = cache / "tokens" / f"{_key(template, examples, rows, limit, drop)}.safetensors"
    found = _read(file)
    if found is None:
        found = rendering.render_rows(template, examples, rows, limit, drop)
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomic(file, _to_bytes(*found))
        except (OSError, TunewrightError):  # a full or read-only disk costs the cache, not the run
            pass
    return found


def _key(template: Template, examples: Sequence[Example], rows: Sequence[int], limit: int, drop: bool) -> str:
    code = Path(rendering.__file__).read_bytes()
    digest = hashlib.sha256(code + f"{template.sha256} {limit} {drop}".encode())
    for row in rows:
        digest.update(f"{row} {examples[row]!r}\x00".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _to_bytes(rendered: Sequence[Rendered], dropped: Sequence[int]) -> bytes:
    from safetensors.numpy import save

    return save(
        {
            "ids": np.array([t for r in rendered for t in r.ids], np.int32),
            "weights": np.array([w for r in rendered for w in r.weights], np.float64),
            "lengths": np.array([len(r.ids) for r in rendered], np.int64),
            "rows": np.array([r.row for r in rendered], np.int64),
            "dropped": np.array(dropped, np.int64),
        }
    )


def _read(file: Path) -> tuple[list[Rendered], list[int]] | None:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        held = load_file(file)
        ids, weights = held["ids"].tolist(), held["weights"].tolist()
        ends = np.cumsum(held["lengths"]).tolist()
        spans = list(zip([0, *ends[:-1]], ends, held["rows"].tolist(), strict=True)) if ends else []
        return [Rendered(tuple(ids[a:b]), tuple(weights[a:b]), row) for a, b, row in spans], held["dropped"].tolist()
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
