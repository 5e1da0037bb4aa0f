"""What k samples are worth, from n of them: whether a model became more able, or only more certain. Numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np
from numpy.typing import NDArray


def highest_of(reward_NG: Sequence[Sequence[float]], k: int) -> NDArray[np.float64]:
    """best_N: of each prompt, the expected highest reward of ``k`` of its samples, estimated without bias from all G:
    the mean over all choices of k. For rewards of 0 and 1 it is pass@k (Chen et al. 2021, 2107.03374)."""
    sorted_NG = np.sort(np.asarray(reward_NG, np.float64), axis=1)
    count = sorted_NG.shape[1]
    assert 1 <= k <= count
    # The i-th lowest, from 0, is the highest of as many choices as there are of k - 1 below it.
    chosen_G = np.array([comb(i, k - 1) for i in range(count)], np.float64) / comb(count, k)
    best_N: NDArray[np.float64] = sorted_NG @ chosen_G
    return best_N
