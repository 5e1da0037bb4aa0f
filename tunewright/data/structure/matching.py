"""Which items of two lists belong together: the pairs with the largest sum of weights. Axes: N, M items of a list."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Ints = NDArray[np.int64]
Pairs = list[tuple[int, int]]


def best_pairs(weights_NM: Ints, ordered: bool) -> Pairs:
    """Pairs (n, m) of positive weight, each item in at most one, that maximise the sum of the weights. ``ordered``: the
    pairs must be in the same order in both lists."""
    if not weights_NM.size:
        return []
    pairs = _in_order(weights_NM) if ordered else _in_any_order(weights_NM)
    return [(n, m) for n, m in pairs if weights_NM[n, m] > 0]


def _in_any_order(weights_NM: Ints) -> Pairs:
    """By the Hungarian method (Kuhn 1955), as scipy implements it."""
    return [(int(n), int(m)) for n, m in zip(*linear_sum_assignment(weights_NM, maximize=True), strict=True)]


def _in_order(weights_NM: Ints) -> Pairs:
    """By dynamic programming, as for the longest common subsequence: ``best[n, m]`` is the largest sum over the first n
    and m items."""
    rows, columns = weights_NM.shape
    best = np.zeros((rows + 1, columns + 1), np.int64)
    for n in range(rows):
        paired = best[n, :-1] + weights_NM[n]
        best[n + 1, 1:] = np.maximum.accumulate(np.maximum(best[n, 1:], paired))
    pairs, n, m = [], rows, columns
    while n and m:
        if best[n, m] == best[n - 1, m]:
            n -= 1
        elif best[n, m] == best[n, m - 1]:
            m -= 1
        else:
            n, m = n - 1, m - 1
            pairs.append((n, m))
    return pairs[::-1]
