"""Fold the rows of one forward pass into a token trie, so that a prefix common to several rows is computed once.

A row is a path from a root to a node; a node is a run of tokens (`Segment`) that attends to its ancestors and,
causally, to itself. Positions continue along the path, so every token sees exactly what it would see in its own row.
Pure; no torch. Axes: T tokens of the flat sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Range = tuple[int, int]

# A segment costs each layer about twenty small operations, a token one pass through all matrices. On two cores with
# 135M parameters a segment costs as much as five tokens (benchmarks/NOTES.md); larger models make it cheaper still.
MIN_SHARED = 16


@dataclass(frozen=True)
class Segment:
    """Tokens ``start``..``stop`` of the flat sequence. ``path``: the ranges of all tokens from the root to ``stop``, in
    order, joined where they touch; the segment's own tokens are the last of them."""

    start: int
    stop: int
    path: tuple[Range, ...]

    @property
    def depth(self) -> int:
        """Tokens from the root to the segment's end."""
        return sum(b - a for a, b in self.path)


@dataclass(frozen=True)
class Tree:
    """``ids_T`` laid out depth first; ``place``: for each row, in the order given, the places of its tokens."""

    ids_T: Ints
    positions_T: Ints
    segments: tuple[Segment, ...]
    place: tuple[Ints, ...]


def build(rows: Sequence[Sequence[int]], shared: bool = True) -> Tree:
    """The trie of ``rows``. A common prefix becomes a node of its own where that saves at least ``MIN_SHARED``
    tokens; with ``shared`` false every row is a root, in the order given."""
    arrays = [np.asarray(row, np.int64) for row in rows]
    order = _sorted(rows) if shared else list(range(len(rows)))
    groups = [order] if shared else [[r] for r in order]
    ids: list[Ints] = []
    positions: list[Ints] = []
    segments: list[Segment] = []
    paths: list[tuple[Range, ...]] = [()] * len(rows)

    def emit(group: list[int], begin: int, end: int, above: tuple[Range, ...]) -> tuple[Range, ...]:
        start = segments[-1].stop if segments else 0
        ids.append(arrays[group[0]][begin:end])
        positions.append(np.arange(begin, end))
        segments.append(Segment(start, start + end - begin, joined(above, (start, start + end - begin))))
        return segments[-1].path

    # An explicit stack: a trie may be deeper than Python's recursion limit. (rows, tokens already laid, their path)
    stack: list[tuple[list[int], int, tuple[Range, ...]]] = [(g, 0, ()) for g in reversed(groups)]
    while stack:
        group, begin, above = stack.pop()
        end = common(arrays[group[0]], arrays[group[-1]])
        if len(group) == 1 or (end - begin) * (len(group) - 1) >= MIN_SHARED:
            above, begin = emit(group, begin, end, above) if end > begin else above, end
        elif len(arrays[group[0]]) == end:
            # The shortest row is a prefix of the others; sharing it does not pay, so it is laid out alone.
            paths[group[0]] = emit(group[:1], begin, end, above) if end > begin else above
            stack.append((group[1:], begin, above))
            continue
        ended = [r for r in group if len(arrays[r]) == begin]
        for r in ended:
            paths[r] = above
        longer = group[len(ended) :]
        children = [list(g) for _, g in groupby(longer, key=lambda r: int(arrays[r][end]))]
        stack.extend((child, begin, above) for child in reversed(children))
    place = tuple(np.concatenate([np.arange(a, b) for a, b in path]) for path in paths)
    return Tree(np.concatenate(ids), np.concatenate(positions), tuple(segments), place)


def _sorted(rows: Sequence[Sequence[int]]) -> list[int]:
    """The rows in order of their tokens, so that rows with a common prefix are neighbours."""
    return sorted(range(len(rows)), key=lambda r: tuple(rows[r]))


def joined(path: tuple[Range, ...], last: Range) -> tuple[Range, ...]:
    return (*path[:-1], (path[-1][0], last[1])) if path and path[-1][1] == last[0] else (*path, last)


def common(a: Ints, b: Ints) -> int:
    """Length of the common prefix."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


def pairs(segments: Sequence[Segment]) -> int:
    """(query, key) pairs that attention needs."""
    return sum(own * (s.depth - own) + own * (own + 1) // 2 for s in segments for own in [s.stop - s.start])


def neighbours(rows: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """(row, tokens it shares with the row before it) in the order in which most is shared."""
    before: Ints | None = None
    for r in _sorted(rows):
        array = np.asarray(rows[r], np.int64)
        yield r, common(array, before) if before is not None else 0
        before = array
