"""Which rows form a step, and how they lie in flat arrays. Pure functions of (lengths, seed, epoch): no state, no torch.

Axes: B sequences (1 when packed), T tokens, N predicted tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tunewright.rendering import Rendered

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """Tokens of one forward pass.

    ``row_N``/``at_N``: the place (sequence, position) whose output predicts ``target_N``, which counts ``weight_N``.
    ``lengths``: tokens of each row; packed rows follow each other in one sequence, padded rows have one each.
    """

    ids_BT: Ints
    positions_BT: Ints
    row_N: Ints
    at_N: Ints
    target_N: Ints
    weight_N: Floats
    lengths: tuple[int, ...]
    packed: bool


def epoch_order(rows: int, seed: int, epoch: int) -> Ints:
    """A permutation of the rows that depends on nothing but its arguments."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(rows)


def step_rows(rows: int, batch: int, seed: int, step: int) -> list[int]:
    """Rows of global step ``step`` (from 0). An epoch's last step may be smaller; no row is left out or seen twice."""
    per_epoch = -(-rows // batch)
    epoch, place = divmod(step, per_epoch)
    return [int(i) for i in epoch_order(rows, seed, epoch)[place * batch : (place + 1) * batch]]


def passes(rows: Sequence[int], lengths: Sequence[int], capacity: int, layout: Literal["packed", "padded"]) -> list[list[int]]:
    """Cut a step's rows into forward passes of at most ``capacity`` tokens (a longer row goes alone).

    Longest first, each into the first pass with room: few passes when packed, little padding when padded.
    """
    bins: list[list[int]] = []
    for row in sorted(rows, key=lambda r: (-lengths[r], r)):
        for found in bins:
            used = (
                sum(lengths[r] for r in found) + lengths[row]
                if layout == "packed"
                else (len(found) + 1) * max(lengths[found[0]], lengths[row])
            )
            if used <= capacity:
                found.append(row)
                break
        else:
            bins.append([row])
    return bins


def to_batch(rows: Sequence[Rendered], packed: bool, pad: int = 0) -> Batch:
    """Lay rows out: one after another (packed, positions start anew) or one below another (padded on the right)."""
    lengths = tuple(len(r.ids) for r in rows)
    if packed:
        ids = np.concatenate([r.ids for r in rows])[None, :]
        positions = np.concatenate([np.arange(n) for n in lengths])[None, :]
    else:
        ids = np.full((len(rows), max(lengths)), pad)
        for b, r in enumerate(rows):
            ids[b, : len(r.ids)] = r.ids
        positions = np.broadcast_to(np.arange(max(lengths)), ids.shape).copy()
    row_N: list[int] = []
    at_N: list[int] = []
    target_N: list[int] = []
    weight_N: list[float] = []
    offset = 0
    for b, r in enumerate(rows):
        for t in range(1, len(r.ids)):
            if r.weights[t]:
                row_N.append(0 if packed else b)
                at_N.append(offset + t - 1)
                target_N.append(r.ids[t])
                weight_N.append(r.weights[t])
        offset += len(r.ids) if packed else 0
    as_int = np.int64
    return Batch(
        ids.astype(as_int),
        positions.astype(as_int),
        np.array(row_N, as_int),
        np.array(at_N, as_int),
        np.array(target_N, as_int),
        np.array(weight_N, np.float32),
        lengths,
        packed,
    )
