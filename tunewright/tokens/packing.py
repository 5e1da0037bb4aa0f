"""Which rows form a batch, how a batch is split into passes, and how the tokens of a pass are laid out. Pure functions
of their arguments; no torch.

Axes: B sequences (1 unless padded), T tokens, N predicted tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tunewright.tokens.prefix_tree import Ints, Segment, build, neighbours
from tunewright.tokens.sequences import Signal, TokenSequence, TrainRow

Tokens = Sequence[int]
Unit = Sequence[Tokens]  # sequences that stay together
Layout = Literal["shared", "packed", "padded"]
MAX_COMPUTED_FRACTION = 0.97  # sharing pays if at most this fraction of the tokens is computed


@dataclass(frozen=True)
class Microbatch:
    """What the model computes in one forward pass: some of the training rows of a batch, as arrays.

    ``row_N``/``at_N``: the row and column of ``ids_BT`` whose output predicts ``target_N``, which counts ``weight_N``.
    ``prediction_M``: for every supervised token of every sequence, in order, which of the N predictions it is;
    ``sequence_M``: the sequence it belongs to, counted in the order they were given. ``segments``: how a flat
    microbatch attends (packed sequences, or sequences folded into a trie); empty when padded. ``tokens``: tokens of the
    sequences, a shared one counted once for each of them; ``ids_BT.size`` are those computed, which are fewer too
    because nothing after a sequence's last prediction is. ``signal``: what else the method's loss reads.
    """

    ids_BT: Ints
    positions_BT: Ints
    row_N: Ints
    at_N: Ints
    target_N: Ints
    weight_N: NDArray[np.float32]
    prediction_M: Ints
    sequence_M: Ints
    segments: tuple[Segment, ...]
    tokens: int
    signal: Signal = field(default_factory=dict)


def epoch_order(rows: int, seed: int, epoch: int) -> Ints:
    """A permutation of the rows, a function of the arguments alone."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(rows)


def step_rows(rows: int, batch: int, seed: int, step: int) -> list[int]:
    """The rows of global step ``step`` (from 0). Each epoch has every row once; its last step may be smaller."""
    per_epoch = -(-rows // batch)
    epoch, place = divmod(step, per_epoch)
    return [int(i) for i in epoch_order(rows, seed, epoch)[place * batch : (place + 1) * batch]]


def units_of(rows: Sequence[TrainRow], chosen: Iterable[int]) -> dict[int, Unit]:
    """The sequences of the chosen rows, by row."""
    return {i: [s.ids for s in rows[i].sequences] for i in chosen}


def singles(sequences: Sequence[Tokens]) -> dict[int, Unit]:
    """Units of one sequence each, by place."""
    return {i: [ids] for i, ids in enumerate(sequences)}


def split_into_passes(units: Mapping[int, Unit], capacity: int, layout: Layout) -> list[list[int]]:
    """Split units into forward passes of at most ``capacity`` computed tokens (a longer unit goes alone). The sequences
    of a unit are never parted. Returns the units' keys, a list for each pass.

    Longest first, each into the first pass with room: few passes when packed, little padding when padded. When shared,
    units with a common beginning follow each other, and a new pass begins where the next unit's own tokens have no
    room.
    """
    if layout == "shared":
        return _passes_of_relatives(units, capacity)
    longest = {i: max(map(len, unit)) for i, unit in units.items()}
    total = {i: sum(map(len, unit)) for i, unit in units.items()}
    size = total if layout == "packed" else longest
    passes: list[list[int]] = []
    sums: list[int] = []  # of each pass: its tokens, or its sequences
    smallest, first = min(size.values(), default=0), 0
    for i in sorted(units, key=lambda i: (-size[i], i)):
        count = total[i] if layout == "packed" else len(units[i])
        for n in range(first, len(passes)):
            width = 1 if layout == "packed" else max(longest[passes[n][0]], longest[i])
            if (sums[n] + count) * width <= capacity:
                passes[n].append(i)
                sums[n] += count
                break
        else:
            passes.append([i])
            sums.append(count)
        while layout == "packed" and first < len(passes) and sums[first] + smallest > capacity:
            first += 1  # nothing fits there any more
    return passes


def _passes_of_relatives(units: Mapping[int, Unit], capacity: int) -> list[list[int]]:
    keys = list(units)
    passes: list[list[int]] = []
    room = computed = 0
    for place, shared in neighbours([units[i][0] for i in keys]):
        unit = units[keys[place]]
        length = sum(map(len, unit)) - (sum(common for _, common in neighbours(unit)) if len(unit) > 1 else 0)
        if passes and length - shared <= room:
            passes[-1].append(keys[place])
            own = length - shared
        else:
            passes.append([keys[place]])
            room, own = capacity, length
        room, computed = room - own, computed + own
    # Units that share next to nothing fill passes better when the longest go first.
    pays = computed <= MAX_COMPUTED_FRACTION * sum(len(ids) for unit in units.values() for ids in unit)
    return passes if pays else split_into_passes(units, capacity, "packed")


def to_microbatch(
    sequences: Sequence[TokenSequence], layout: Layout, pad: int = 0, signal: Signal | None = None
) -> Microbatch:
    """The sequences of one pass, laid out: folded into a trie (shared), one after another (packed), or one below
    another (padded on the right).

    Equal predictions (same place, same target) are merged when shared, with their weights summed: a shared token that
    carries loss in several sequences counts once for each, and the last shared token predicts the first token of every
    branch.
    """
    weights = [np.asarray(s.weights, np.float32) for s in sequences]
    at = [1 + np.flatnonzero(w[1:]) for w in weights]
    # Nobody reads what follows the last prediction, such as the stop token.
    read = [s.ids[: max([1, *t[-1:]])] for s, t in zip(sequences, at, strict=True)]
    if layout == "padded":
        longest = max(map(len, read))
        ids = np.full((len(sequences), longest), pad)
        for b, row in enumerate(read):
            ids[b, : len(row)] = row
        positions = np.broadcast_to(np.arange(longest), ids.shape).copy()
        place = [b * longest + np.arange(len(row)) for b, row in enumerate(read)]
        segments: tuple[Segment, ...] = ()
    else:
        tree = build(read, shared=layout == "shared")
        longest = len(tree.ids_T)
        ids, positions, place, segments = tree.ids_T[None], tree.positions_T[None], list(tree.place), tree.segments
    flat_N = np.concatenate([p[t - 1] for p, t in zip(place, at, strict=True)])
    target_N = np.concatenate([np.asarray(s.ids, np.int64)[t] for s, t in zip(sequences, at, strict=True)])
    weight_N = np.concatenate([w[t] for w, t in zip(weights, at, strict=True)])
    prediction_M = np.arange(len(flat_N))
    if layout == "shared":
        (flat_N, target_N), prediction_M = _distinct(flat_N, target_N)
        weight_N = np.bincount(prediction_M, weight_N, len(flat_N)).astype(np.float32)
    return Microbatch(
        ids_BT=ids.astype(np.int64),
        positions_BT=positions.astype(np.int64),
        row_N=flat_N // longest,
        at_N=flat_N % longest,
        target_N=target_N,
        weight_N=weight_N,
        prediction_M=prediction_M,
        sequence_M=np.repeat(np.arange(len(sequences)), list(map(len, at))),
        segments=segments,
        tokens=sum(len(s.ids) for s in sequences),
        signal=signal or {},
    )


def _distinct(*columns: Ints) -> tuple[Ints, Ints]:
    kept, same = np.unique(np.stack(columns), axis=1, return_inverse=True)
    return kept, same.reshape(-1)
