"""A mean over rows of which people have seen some and a judge all: prediction-powered inference, with the weight of the
judge chosen from the data (PPI++: Angelopoulos, Duchi & Zrnic 2023, 2311.01453; Angelopoulos et al. 2023, 2301.09633).

If the judge agrees with people, its choices on the other rows narrow the interval; if it does not, its weight goes to
0, and the interval is that of people alone. Whatever the judge, the interval is about what people prefer.

Axes: L rows with a label by people, U rows without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    ``clusters``: of the rows with and without a label.

    One pseudo-label for and one against, as in `judge.statistics`: few labels say little about rare choices.
    """
    y, f, rest = (np.asarray(x, float) for x in (people_L, judge_L, judge_U))
    if len(y) < MIN_LABELLED:
        return None
    y, f = np.r_[y, 0.0, 1.0], np.r_[f, 0.5, 0.5]
    groups = [*clusters[0], max(clusters[0]) + 1, max(clusters[0]) + 2]
    weight = _weight(y, f, rest)
    fixed = y - weight * f
    variance = _variance(fixed, groups)
    total = float(fixed.mean())
    if len(rest) and weight:
        total += weight * float(rest.mean())
        variance += weight**2 * _variance(rest, clusters[1])
    else:
        total += weight * float(f.mean())
    half = float(stats.t.isf(alpha / 2, len(set(groups)) - 1)) * float(np.sqrt(variance))
    ends = (float(np.clip(x, 0.0, 1.0)) for x in (total - half, total + half))
    return Estimate(float(np.clip(total, 0.0, 1.0)), Interval(*ends), weight)


def _weight(y: Floats, f: Floats, rest: Floats) -> float:
    """The weight of the smallest variance (PPI++, proposition 2), from 0 to 1."""
    spread = float(np.var(np.r_[f, rest]))
    if len(rest) < 2 or spread == 0:
        return 0.0
    covariance = float(np.mean((y - y.mean()) * (f - f.mean())))
    return float(np.clip(covariance / (spread * (1 + len(y) / len(rest))), 0.0, 1.0))


def _variance(values: Floats, clusters: Sequence[int]) -> float:
    """Of the mean, if rows of one cluster depend on each other."""
    _, group = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(group, weights=values - values.mean())
    count = len(sums)
    return float((sums**2).sum()) * count / max(1, count - 1) / len(values) ** 2
