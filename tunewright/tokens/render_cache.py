"""Training rows of a data set, rendered once and kept in the run folder under the hash of all that decides them."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tunewright.core.errors import DataError, Problem, TunewrightError
from tunewright.core.run_folder import write_atomic
from tunewright.data import messages, tool_calls
from tunewright.data.messages import Example
from tunewright.tokens import encoder_text, rendering, sequences, template, texts, written
from tunewright.tokens.sequences import Signal, TokenSequence, TrainRow
from tunewright.tokens.template import Template

# A method's `prepare`: the training rows of one example, given its row and the longest sequence in tokens.
Prepare = Callable[[Template, Example, int, int | None], list[TrainRow]]


@dataclass(frozen=True)
class RowRenderer:
    """How examples become training rows. ``max_length``: the longest sequence in tokens; ``too_long``: what becomes of
    an example with a longer one; ``unread``: places at the end of a sequence that the model does not read."""

    template: Template
    prepare: Prepare
    max_length: int
    too_long: Literal["error", "drop"]
    unread: int = 0


@dataclass(frozen=True)
class RenderedRows:
    """``dropped``: the examples that were left out as too long."""

    rows: list[TrainRow]
    dropped: list[int]


def render_rows(renderer: RowRenderer, examples: Sequence[Example], chosen: Sequence[int]) -> RenderedRows:
    """The training rows of the ``chosen`` examples. Raises DataError with every problem of every example at once."""
    problems: list[Problem] = []
    rows: list[TrainRow] = []
    dropped: list[int] = []
    for i in chosen:
        try:
            prepared = renderer.prepare(renderer.template, examples[i], i, renderer.max_length)
        except DataError as error:
            problems += [p if p.where else Problem(p.code, p.message, examples[i].where, p.fix) for p in error.problems]
            continue
        longest = max((len(s.ids) for s in sequences.flat(prepared)), default=0) - renderer.unread
        if longest <= renderer.max_length:
            rows += prepared
        elif renderer.too_long == "drop":
            dropped.append(i)
        else:
            problems.append(
                Problem(
                    "DATA_TOO_LONG",
                    f"{longest} tokens; the limit is {renderer.max_length}.",
                    examples[i].where,
                    "shorten it, raise train.max_length, or set data.too_long=drop.",
                )
            )
    if problems:
        raise DataError(problems)
    return RenderedRows(rows, dropped)


def cached_rows(
    renderer: RowRenderer, examples: Sequence[Example], chosen: Sequence[int], folder: Path
) -> RenderedRows:
    """`render_rows` through a cache in ``folder``. A file that cannot be read is written again."""
    file = folder / "tokens" / f"{_key(renderer, examples, chosen)}.safetensors"
    rendered = read(file)
    if rendered is None:
        rendered = render_rows(renderer, examples, chosen)
        with suppress(TunewrightError):  # a full or read-only disk costs the cache, not the run
            write_atomic(file, to_bytes(rendered))
    return rendered


def stored(folder: Path) -> list[TokenSequence]:
    """The sequences of the largest side in the cache of ``folder``, usually those of the training rows; empty without a
    cache."""
    files = sorted((folder / "tokens").glob("*.safetensors"), key=lambda file: -file.stat().st_size)
    rendered = read(files[0]) if files else None
    return [] if rendered is None else sequences.flat(rendered.rows)


def _key(renderer: RowRenderer, examples: Sequence[Example], chosen: Sequence[int]) -> str:
    # The code that renders is part of the key: another version of it must not read rows that this one wrote.
    parts = (messages, tool_calls, encoder_text, rendering, texts, written, sequences, template)
    code = [*(Path(inspect.getfile(part)) for part in parts), *_method_files(renderer.prepare)]
    total = hashlib.sha256(b"".join(file.read_bytes() for file in code))
    total.update(f"{renderer.prepare.__module__} {renderer.prepare.__qualname__} ".encode())
    total.update(f"{renderer.template.sha256} {renderer.max_length} {renderer.too_long}".encode())
    for i in chosen:
        total.update(f"{i} {examples[i]!r}\x00".encode("utf-8", "surrogatepass"))
    return total.hexdigest()


def _method_files(prepare: Prepare) -> list[Path]:
    """All modules of methods, because one method prepares rows by the functions of another."""
    file, package = Path(inspect.getfile(prepare)), Path(__file__).parent.parent
    return sorted((package / "methods").rglob("*.py")) if file.is_relative_to(package / "methods") else [file]


def to_bytes(rendered: RenderedRows) -> bytes:
    """Sequences one after another; ``counts`` says how many belong to each row, and is left out where it is one for
    all. Signals are tensors ``signal/ROW/NAME``, ROW counting the rows of the file."""
    from safetensors.numpy import save

    flat = sequences.flat(rendered.rows)
    tensors: dict[str, NDArray[np.generic]] = {
        "ids": np.array([t for s in flat for t in s.ids], np.int32),
        "weights": np.array([w for s in flat for w in s.weights], np.float64),
        "lengths": np.array([len(s.ids) for s in flat], np.int64),
        "rows": np.array([s.row for s in flat], np.int64),
        "dropped": np.array(rendered.dropped, np.int64),
    }
    if any(len(r.sequences) != 1 for r in rendered.rows):
        tensors["counts"] = np.array([len(r.sequences) for r in rendered.rows], np.int64)
    for place, row in enumerate(rendered.rows):
        tensors |= {f"signal/{place}/{name}": np.ascontiguousarray(values) for name, values in row.signal.items()}
    return save(tensors)


def read(file: Path) -> RenderedRows | None:
    """What `to_bytes` wrote; None if the file is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        held = load_file(file)
        ids, weights = held["ids"].tolist(), held["weights"].tolist()
        starts = [0, *np.cumsum(held["lengths"]).tolist()]
        spans = zip(starts[:-1], starts[1:], held["rows"].tolist(), strict=True)
        flat = [TokenSequence(tuple(ids[a:b]), tuple(weights[a:b]), row) for a, b, row in spans]
        counts = held["counts"].tolist() if "counts" in held else [1] * len(flat)
        signals: list[dict[str, NDArray[np.generic]]] = [{} for _ in counts]
        for key in held:
            if key.startswith("signal/"):
                _, place, name = key.split("/", 2)
                signals[int(place)][name] = held[key]
        return RenderedRows(_rows(flat, counts, signals), held["dropped"].tolist())
    except (OSError, SafetensorError, KeyError, ValueError, IndexError):
        return None


def _rows(flat: list[TokenSequence], counts: list[int], signals: Sequence[Signal]) -> list[TrainRow]:
    ends = np.cumsum(counts).tolist()
    parts = [tuple(flat[end - n : end]) for n, end in zip(counts, ends, strict=True)]
    return [TrainRow(part, part[0].row, signal) for part, signal in zip(parts, signals, strict=True)]
