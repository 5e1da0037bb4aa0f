"""Which rows form a step, and how they lie in flat arrays. Pure functions of (rows, seed, epoch): no state, no torch.

Axes: B sequences (1 unless padded), T tokens, N predicted tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tunewright.tokens.prefix_tree import Ints, Segment, build, neighbours
from tunewright.tokens.rendering import Rendered

Floats = NDArray[np.float32]
Layout = Literal["shared", "packed", "padded"]
WORTH = 0.97


@dataclass(frozen=True)
class Batch:
    """Tokens of one forward pass.

    ``row_N``/``at_N``: the place (sequence, position) whose output predicts ``target_N``, which counts ``weight_N``.
    ``which_M``: for every supervised token of every row, in order, which of the N predictions it is.
    ``segments``: how a flat sequence attends (packed rows, or rows folded into a trie); empty when padded.
    ``tokens``: tokens of the rows, a shared one counted once for each of its rows; ``ids_BT.size`` are those computed, which
    are fewer too because nothing after a row's last prediction is.
    """

    ids_BT: Ints
    positions_BT: Ints
    row_N: Ints
    at_N: Ints
    target_N: Ints
    weight_N: Floats
    which_M: Ints
    segments: tuple[Segment, ...]
    tokens: int


def epoch_order(rows: int, seed: int, epoch: int) -> Ints:
    """A permutation of the rows that depends on nothing but its arguments."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(rows)


def step_rows(rows: int, batch: int, seed: int, step: int) -> list[int]:
    """Rows of global step ``step`` (from 0). An epoch's last step may be smaller; no row is left out or seen twice."""
    per_epoch = -(-rows // batch)
    epoch, place = divmod(step, per_epoch)
    return [int(i) for i in epoch_order(rows, seed, epoch)[place * batch : (place + 1) * batch]]


def microbatches(rows: Sequence[int], sequences: Sequence[Sequence[int]], capacity: int, layout: Layout) -> list[list[int]]:
    """Cut a step's rows into forward passes of at most ``capacity`` computed tokens (a longer row goes alone).

    Longest first, each into the first pass with room: few passes when packed, little padding when padded. When shared, rows
    with a common beginning follow each other, and a new pass begins where the next row's own tokens have no room.
    """
    if layout == "shared":
        return _passes_of_relatives(rows, sequences, capacity)
    lengths = {r: len(sequences[r]) for r in rows}
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


def _passes_of_relatives(rows: Sequence[int], sequences: Sequence[Sequence[int]], capacity: int) -> list[list[int]]:
    groups: list[list[int]] = []
    room = computed = 0
    for place, shared in neighbours([sequences[r] for r in rows]):
        length = len(sequences[rows[place]])
        if groups and length - shared <= room:
            groups[-1].append(rows[place])
            own = length - shared
        else:
            groups.append([rows[place]])
            room, own = capacity, length
        room, computed = room - own, computed + own
    # Rows that share next to nothing fill passes better when the longest go first.
    worth = computed <= WORTH * sum(len(sequences[r]) for r in rows)
    return groups if worth else microbatches(rows, sequences, capacity, "packed")


def to_batch(rows: Sequence[Rendered], layout: Layout, pad: int = 0) -> Batch:
    """Lay rows out: folded into a trie (shared), one after another (packed), or one below another (padded on the right).

    Equal predictions (same place, same target) are one, with their weights summed: so a shared token that carries loss in
    several rows counts as often as it is said, and the last shared token predicts every branch's first.
    """
    weights = [np.asarray(r.weights, np.float32) for r in rows]
    said = [1 + np.flatnonzero(w[1:]) for w in weights]
    # What stands after the last prediction (the stop token, first of all) is read by nobody.
    read = [r.ids[: max([1, *t[-1:]])] for r, t in zip(rows, said, strict=True)]
    if layout == "padded":
        longest = max(map(len, read))
        ids = np.full((len(rows), longest), pad)
        for b, row in enumerate(read):
            ids[b, : len(row)] = row
        positions = np.broadcast_to(np.arange(longest), ids.shape).copy()
        place = [b * longest + np.arange(len(row)) for b, row in enumerate(read)]
        segments: tuple[Segment, ...] = ()
    else:
        tree = build(read, share=layout == "shared")
        longest = len(tree.ids_T)
        ids, positions, place, segments = tree.ids_T[None], tree.positions_T[None], list(tree.place), tree.segments
    flat_N = np.concatenate([p[t - 1] for p, t in zip(place, said, strict=True)])
    target_N = np.concatenate([np.asarray(r.ids, np.int64)[t] for r, t in zip(rows, said, strict=True)])
    weight_N = np.concatenate([w[t] for w, t in zip(weights, said, strict=True)])
    which_M = np.arange(len(flat_N))
    if layout == "shared":
        (flat_N, target_N), which_M = _distinct(flat_N, target_N)
        weight_N = np.bincount(which_M, weight_N, len(flat_N)).astype(np.float32)
    return Batch(
        ids.astype(np.int64),
        positions.astype(np.int64),
        flat_N // longest,
        flat_N % longest,
        target_N,
        weight_N,
        which_M,
        segments,
        sum(len(r.ids) for r in rows),
    )


def _distinct(*columns: Ints) -> tuple[Ints, Ints]:
    found, same = np.unique(np.stack(columns), axis=1, return_inverse=True)
    return found, same.reshape(-1)
