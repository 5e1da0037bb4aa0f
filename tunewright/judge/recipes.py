"""Which of several recipes is better, by their dev losses: what the best of many owes to chance is taken into account.

The default is given up only for a recipe whose loss is lower beyond the noise of dev rows and of seeds. Rows: a
cluster-robust standard error of the paired differences (Miller 2024, 2411.00640). Seeds: their variance, pooled over
both recipes. Together: a t interval with Satterthwaite's (1946) degrees of freedom, at a level divided by the number of
comparisons (Bonferroni), because the best of many is compared.

Axes: S seeds, R dev rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tunewright.core.records.common import Interval

RUNGS = (0.25, 0.5, 1.0)  # fractions of the steps at which recipes are compared

Nats = NDArray[np.float64]


def kept(losses: Mapping[int, float], default: int) -> list[int]:
    """The better half of the recipes, in their order, with the default among them."""
    most = math.ceil(len(losses) / 2)
    others = sorted((n for n in losses if n != default), key=lambda n: losses[n])
    return sorted([default, *others[: most - 1]]) if most > 1 else sorted([default, *others[:1]])


def difference(
    nats_SR: Nats, default_SR: Nats, clusters: Sequence[int], alpha: float, comparisons: int
) -> tuple[float, Interval]:
    """Mean difference in nats per row, and its interval. With one seed each, of the rows alone."""
    d_R = nats_SR.mean(0) - default_SR.mean(0)
    rows, df_rows = _variance_of_rows(d_R, clusters)
    seeds, df_seeds = _variance_of_seeds(nats_SR.mean(1), default_SR.mean(1))
    total = rows + seeds
    mean = float(d_R.mean())
    if total == 0.0:
        return mean, Interval(mean, mean)
    parts = rows**2 / max(1, df_rows) + (seeds**2 / df_seeds if df_seeds else 0.0)
    half = float(stats.t.isf(alpha / (2 * comparisons), total**2 / parts)) * math.sqrt(total)
    return mean, Interval(mean - half, mean + half)


def _variance_of_rows(d_R: Nats, clusters: Sequence[int]) -> tuple[float, int]:
    """Of the mean, and its degrees of freedom."""
    groups = np.unique(np.asarray(clusters), return_inverse=True)[1]
    count = int(groups.max()) + 1
    if count < 2:
        return math.inf, 1
    sums = np.bincount(groups, weights=d_R - d_R.mean())
    return float((sums**2).sum()) * count / (count - 1) / len(d_R) ** 2, count - 1


def _variance_of_seeds(first_S: Nats, second_S: Nats) -> tuple[float, int]:
    """Of the difference of the two means, and its degrees of freedom."""
    df = len(first_S) + len(second_S) - 2
    if df == 0:
        return 0.0, 0
    squares = float(((first_S - first_S.mean()) ** 2).sum() + ((second_S - second_S.mean()) ** 2).sum())
    return squares / df * (1 / len(first_S) + 1 / len(second_S)), df
