"""A mean over rows of which people have seen some and a judge all: prediction-powered inference, with the weight of the
judge chosen from the data (PPI++: Angelopoulos, Duchi & Zrnic 2023, 2311.01453; Angelopoulos et al. 2023, 2301.09633).

If the judge agrees with people, its choices on the other rows narrow the interval; if it does not, its weight is near
0, and the interval is that of people alone. Whatever the judge, the interval is about what people prefer, as long as
the rows that people have seen are a random part of all.

Axes: L rows with a label by people, U rows without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tunewright.core.records.common import Interval

MIN_LABELLED = 20
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean, its interval, and how much the judge counts in it."""

    mean: float
    interval: Interval
    weight: float


def mean(
    people_L: ArrayLike,
    judge_L: ArrayLike,
    judge_U: ArrayLike,
    clusters: tuple[Sequence[int], Sequence[int]],
    alpha: float,
) -> Estimate | None:
    """The mean of people's values, all from 0 to 1, over both kinds of rows. None for fewer than `MIN_LABELLED` labels.
    ``clusters``: of the rows with and without a label, which may have some in common.

    One pseudo-label for and one against, as in `judge.statistics`: few labels say little about rare choices.
    """
    y, f, rest = (np.asarray(x, float) for x in (people_L, judge_L, judge_U))
    if len(y) < MIN_LABELLED:
        return None
    weight = _weight(y, f, rest)
    y, f = np.r_[y, 0.0, 1.0], np.r_[f, 0.5, 0.5]
    unused = max([*clusters[0], *clusters[1]]) + 1
    labelled = [*clusters[0], unused, unused + 1]
    fixed = y - weight * f
    total = float(fixed.mean()) + (weight * float(rest.mean()) if weight else 0.0)
    influence = (fixed - fixed.mean()) / len(fixed)
    if weight:
        influence = np.r_[influence, weight * (rest - rest.mean()) / len(rest)]
    groups = np.unique([*labelled, *(clusters[1] if weight else ())], return_inverse=True)[1]
    count = len(set(labelled))
    variance = float((np.bincount(groups, weights=influence) ** 2).sum()) * count / (count - 1)
    half = float(stats.t.isf(alpha / 2, count - 1)) * sqrt(variance)
    return _estimate(total, half, half, weight)


def with_ties(estimate: Estimate, ties: int, rows: int, alpha: float) -> Estimate:
    """The mean of the same rows and ``ties`` more, whose value is 0.5 whoever is asked. ``rows``: how many the estimate
    is about. Of rows like these, another fraction may be ties."""
    part, away = rows / (rows + ties), estimate.mean - 0.5
    low, high = estimate.interval
    drawn = float(stats.norm.isf(alpha / 2)) * abs(away) * sqrt(part * (1 - part) / (rows + ties))
    ends = (hypot(part * (estimate.mean - low), drawn), hypot(part * (high - estimate.mean), drawn))
    return _estimate(0.5 + part * away, *ends, estimate.weight)


def _estimate(middle: float, below: float, above: float, weight: float) -> Estimate:
    low, middle, high = (float(np.clip(x, 0.0, 1.0)) for x in (middle - below, middle, middle + above))
    return Estimate(middle, Interval(low, high), weight)


def _weight(y: Floats, f: Floats, rest: Floats) -> float:
    """The weight of the smallest variance (PPI++, proposition 2), from 0 to 1."""
    spread = float(np.var(np.r_[f, rest]))
    if len(rest) < 2 or spread == 0:
        return 0.0
    covariance = float(np.mean((y - y.mean()) * (f - f.mean())))
    return float(np.clip(covariance / (spread * (1 + len(y) / len(rest))), 0.0, 1.0))
