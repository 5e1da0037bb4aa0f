"""What paired scores of two arms show: intervals, tests, and a verdict on one comparison. Pure numpy/scipy.

(The verdict of a run is decided in `judge.verdict`.)

Right/wrong scores: Newcombe's paired score interval (Newcombe 1998, Stat. Med. 17:2635, method 10) and the exact
McNemar test, at the effective number of rows, because rows of one cluster are dependent (Kish 1965). Other scores: the
mean of the paired differences, with one pseudo-row for and one against, a cluster-robust standard error (Miller 2024,
2411.00640) and a t quantile with (clusters - 1) degrees of freedom. Not a percentile bootstrap: if the arms rarely
disagree, its "95%" interval may cover the truth only a third of the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from tunewright.core.records.common import Interval, VerdictWord

POWER = 0.8
MIN_CLUSTERS = 5  # in which two arms must differ before their differences say how large differences are


class MeanInterval(NamedTuple):
    """An interval of a mean, and the two-sided p value of the mean being 0."""

    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Comparison:
    """Tuned - comparator over the same rows, oriented so that positive is good. ``interval`` is at level 1 - alpha;
    ``verdict``: what this comparison alone shows; ``only_tuned`` and ``only_comparator``: rows on which one of the two
    scored higher; ``rows_needed`` is set if the verdict is CANNOT TELL."""

    verdict: VerdictWord
    difference: float
    interval: Interval
    p_value: float
    test: str
    rows: int
    clusters: int
    only_tuned: int
    only_comparator: int
    margin: float
    alpha: float
    rows_needed: int | None

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        return {**asdict(self), "interval": list(self.interval)}

    def estimate(self) -> dict[str, Any]:
        """The difference and its interval."""
        return {"difference": self.difference, "interval": list(self.interval)}

    def summary(self) -> dict[str, Any]:
        """The difference, its interval and the verdict."""
        return {**self.estimate(), "verdict": self.verdict}


def wilson(successes: float, n: float, alpha: float = 0.05) -> Interval:
    """Score interval of a proportion (Wilson 1927); (0, 1) for n = 0."""
    if n == 0:
        return Interval(0.0, 1.0)
    z = float(stats.norm.isf(alpha / 2))
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return Interval(max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale))


def newcombe_paired(both: float, first: float, second: float, neither: float, alpha: float = 0.05) -> Interval:
    """Interval of p1 - p2 for paired right/wrong rows. ``first``: rows that only arm 1 got right. Counts may be
    fractional."""
    n = both + first + second + neither
    if n == 0:
        return Interval(-1.0, 1.0)
    p1, p2 = (both + first) / n, (both + second) / n
    low1, high1 = wilson(both + first, n, alpha)
    low2, high2 = wilson(both + second, n, alpha)
    cross = float(both * neither - first * second)
    if cross > 0:
        cross = max(cross - n / 2, 0.0)  # the continuity correction that makes this method 10
    product = (both + first) * (second + neither) * (both + second) * (first + neither)
    phi = cross / math.sqrt(product) if product else 0.0
    below = (p1 - low1) ** 2 - 2 * phi * (p1 - low1) * (high2 - p2) + (high2 - p2) ** 2
    above = (high1 - p1) ** 2 - 2 * phi * (high1 - p1) * (p2 - low2) + (p2 - low2) ** 2
    return Interval(max(-1.0, p1 - p2 - math.sqrt(max(0.0, below))), min(1.0, p1 - p2 + math.sqrt(max(0.0, above))))


def mcnemar_exact(first: float, second: float) -> float:
    """Two-sided p value of "the rows on which the arms disagree are split evenly". The binomial tail is an incomplete
    beta function, so counts may be fractional."""
    if not first + second:
        return 1.0
    return min(1.0, 2 * float(special.betainc(max(first, second), min(first, second) + 1, 0.5)))


def clustered_interval(
    values: ArrayLike, clusters: Sequence[int], alpha: float = 0.05, bound: float = 1.0, pseudo: bool = True
) -> MeanInterval:
    """Interval of the mean; rows of one cluster may depend on each other, and |mean| cannot exceed ``bound``.
    ``pseudo`` adds two clusters of average size (see `pseudo_rows`).

    With fewer than two clusters there is no evidence: (-bound, bound, 1). If all values are equal, the interval does
    not have width zero, but the width for a proportion of which no case was observed.
    """
    d = np.asarray(values, dtype=float)
    groups = np.unique(np.asarray(clusters, dtype=int), return_inverse=True)[1]
    seen = int(groups.max()) + 1 if len(d) else 0
    if seen < 2:
        return MeanInterval(-bound, bound, 1.0)
    count, weights = seen, np.ones(len(d))
    if pseudo:
        count, weights = seen + 2, np.r_[weights, np.full(2, len(d) / seen)]
        d, groups = np.r_[d, pseudo_rows(d, groups, bound)], np.r_[groups, seen, seen + 1]
    mean = float(np.average(d, weights=weights))
    sums = np.bincount(groups, weights=weights * (d - mean), minlength=count)
    se = math.sqrt(float((sums**2).sum()) * count / (count - 1)) / float(weights.sum())
    if se <= 1e-12 * max(1.0, abs(mean)):
        unseen = 1 - alpha ** (1 / count)
        half = unseen * min(bound, 1.0)
        p = 1.0 if mean == 0 else alpha ** (count / 2)
        return MeanInterval(max(-bound, mean - half), min(bound, mean + half), p)
    half = float(stats.t.isf(alpha / 2, seen - 1)) * se
    p = float(2 * stats.t.sf(abs(mean) / se, seen - 1))
    return MeanInterval(max(-bound, mean - half), min(bound, mean + half), p)


def pseudo_rows(differences: ArrayLike, clusters: ArrayLike, bound: float = 1.0) -> tuple[float, float]:
    """One difference for and one against, each the root mean square of the non-zero ones: what Bonett and Price (2012,
    J. Educ. Behav. Stat. 37:479) add to right/wrong pairs, generalised to any scores. If arms seldom differ, a sample
    has too few differences to estimate their spread; in fewer than `MIN_CLUSTERS` clusters, even their size is unknown,
    and the largest possible size is assumed.
    """
    d, groups = np.asarray(differences, dtype=float), np.asarray(clusters)
    nonzero = d[d != 0]
    size = math.sqrt(float((nonzero**2).mean())) if len(np.unique(groups[d != 0])) >= MIN_CLUSTERS else min(bound, 1.0)
    return size, -size


def mean_interval(scores: ArrayLike, clusters: Sequence[int], alpha: float = 0.05, bound: float = 1.0) -> Interval:
    """Interval of one arm's mean score: Wilson for right/wrong, clustered t otherwise, clipped to [0, bound]."""
    s = np.asarray(scores, dtype=float)
    if is_binary(s):
        ratio = kish_ratio(clusters)
        return wilson(ratio * float(s.sum()), ratio * len(s), alpha)
    middle = float(np.median(s)) if len(s) else 0.0
    low, high, _ = clustered_interval(s - middle, clusters, alpha, bound)
    return Interval(max(0.0, middle + low), min(bound, middle + high))


def kish_ratio(clusters: Sequence[int]) -> float:
    """Effective over actual number of rows if the rows of a cluster score alike: n / sum of squared cluster sizes
    (Kish 1965, Survey Sampling, section 8.2, with a correlation of 1). 1 if no two rows share a cluster."""
    sizes = np.unique(np.asarray(clusters, dtype=int), return_counts=True)[1]
    return float(sizes.sum() / (sizes**2).sum()) if len(sizes) else 1.0


def is_binary(scores: ArrayLike) -> bool:
    return bool(np.isin(np.asarray(scores, dtype=float), (0.0, 1.0)).all())


def compare(
    tuned: ArrayLike,
    other: ArrayLike,
    clusters: Sequence[int],
    *,
    margin: float = 0.02,
    alpha: float = 0.05,
    higher_is_better: bool = True,
    bound: float = 1.0,
) -> Comparison:
    """What paired scores of the same rows show.

    BETTER: the interval lies above 0, and p is at most alpha. WORSE: below. PRACTICALLY EQUAL: the interval at
    1 - 2 alpha lies within (-margin, margin) (two one-sided tests). Otherwise CANNOT TELL, with the number of rows
    that would decide it with power 0.8.
    """
    a, b = np.asarray(tuned, dtype=float), np.asarray(other, dtype=float)
    assert a.shape == b.shape == (len(clusters),)
    d = a - b if higher_is_better else b - a
    n = len(d)
    if is_binary(a) and is_binary(b) and higher_is_better:
        ratio = kish_ratio(clusters)
        both, first, second, neither = (
            ratio * float(((a == x) & (b == y)).sum()) for x, y in ((1, 1), (1, 0), (0, 1), (0, 0))
        )
        interval, narrow = (newcombe_paired(both, first, second, neither, level) for level in (alpha, 2 * alpha))
        p, test = mcnemar_exact(first, second), "Newcombe paired interval, exact McNemar"
    else:
        low, high, p = clustered_interval(d, clusters, alpha, bound)
        interval, narrow = Interval(low, high), Interval(*clustered_interval(d, clusters, 2 * alpha, bound)[:2])
        test = "clustered paired t, one pseudo-row for and one against"
    # With few rows, the score interval alone would be wrong too often: in a quarter of all cases with two.
    word: VerdictWord = "CANNOT TELL"
    if n and interval.low > 0 and p <= alpha:
        word = "BETTER"
    elif n and interval.high < 0 and p <= alpha:
        word = "WORSE"
    elif n and -margin < narrow.low and narrow.high < margin:
        word = "PRACTICALLY EQUAL"
    mean = float(d.mean()) if n else 0.0
    needed = None
    if word == "CANNOT TELL":
        needed = max(n + 1, rows_needed(float(d.std()) if n else 1.0, max(abs(mean), margin), alpha))
    return Comparison(
        verdict=word,
        difference=mean,
        interval=Interval(float(interval.low), float(interval.high)),
        p_value=p,
        test=test,
        rows=n,
        clusters=len(set(clusters)),
        only_tuned=int((d > 0).sum()),
        only_comparator=int((d < 0).sum()),
        margin=margin,
        alpha=alpha,
        rows_needed=needed,
    )


def rows_needed(spread: float, difference: float, alpha: float = 0.05, power: float = POWER) -> int:
    """Independent rows for a two-sided test to detect ``difference`` with ``power``. ``spread``: SD of the paired
    differences."""
    z = float(stats.norm.isf(alpha / 2) + stats.norm.ppf(power))
    return max(2, math.ceil((z * max(spread, 1e-3) / difference) ** 2))


def detectable(rows: int, disagreement: float = 0.3, alpha: float = 0.05, power: float = POWER) -> float:
    """Smallest true difference between right/wrong arms that the exact McNemar test detects with ``power`` in ``rows``
    rows. ``disagreement``: the fraction of rows on which the arms differ. 1.0 if not even the largest difference is
    detected."""
    if rows == 0 or mcnemar_power(rows, disagreement, disagreement, alpha) < power:
        return 1.0
    low, high = 0.0, disagreement
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if mcnemar_power(rows, middle, disagreement, alpha) >= power else (middle, high)
    return high


def detectable_mean(rows: int, spread: float, alpha: float = 0.05, power: float = POWER) -> float:
    """As `detectable`, for scores between 0 and 1 whose differences have the SD ``spread``. The two pseudo-rows widen
    the interval, more so for larger differences."""
    if rows < 2:
        return 1.0
    effect, n = 0.0, rows
    for _ in range(20):  # a fixed point: the effect depends on the pseudo-rows, which are as large as the effect
        mean = effect * n / (n + 2)
        squares = n * (spread**2 + (effect - mean) ** 2) + 2 * (spread**2 + effect**2 + mean**2)
        se = math.sqrt(squares / (n + 1) / (n + 2))
        effect = (n + 2) / n * float(stats.t.isf(alpha / 2, n - 1)) * se + float(
            stats.norm.ppf(power)
        ) * spread / math.sqrt(n)
    return min(1.0, effect)


def mcnemar_power(rows: int, difference: float, disagreement: float, alpha: float = 0.05) -> float:
    """Probability that the exact two-sided McNemar test rejects, summed over the number of disagreeing rows and their
    split."""
    count = np.arange(rows + 1)
    prob = stats.binom.pmf(count, rows, disagreement)
    # The largest minority that is still significant among so many disagreeing rows; -1 if none is.
    most = np.asarray(stats.binom.ppf(alpha / 2, count, 0.5)).astype(int)
    most = np.where(2 * stats.binom.cdf(most, count, 0.5) <= alpha, most, most - 1)
    first = min(1.0, 0.5 + difference / (2 * disagreement))
    rejects = stats.binom.cdf(most, count, 1 - first) + stats.binom.cdf(most, count, first)
    return float((prob * np.where(most >= 0, rejects, 0.0)).sum())


ValueOfSums = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def corpus_interval(
    tuned_Ck: ArrayLike,
    other_Ck: ArrayLike,
    metric: ValueOfSums,
    alpha: float = 0.05,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval | None:
    """Interval of the difference in a corpus metric between two arms on the same clusters: bias-corrected and
    accelerated bootstrap (Efron 1987) over clusters, the same resamples for both arms, with one pseudo-cluster for and
    one against.

    Row c of each array holds the sums over cluster c from which the metric is computed (matches and totals, nats and
    bytes); ``metric`` maps sums (..., k) to values (...). None if the arms differ in fewer than `MIN_CLUSTERS`
    clusters: resampling so few carries no information about the others.
    """
    a, b = np.asarray(tuned_Ck, dtype=float), np.asarray(other_Ck, dtype=float)
    assert a.shape == b.shape
    if int((a != b).any(1).sum()) < MIN_CLUSTERS:
        return None
    a, b = pseudo_clusters(a, b, metric)
    count, middle = len(a), float(metric(a.sum(0)) - metric(b.sum(0)))
    rng = np.random.Generator(np.random.Philox(key=seed))
    times_BC = rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(float)
    drawn_B = metric(times_BC @ a) - metric(times_BC @ b)
    left_out = metric(a.sum(0) - a) - metric(b.sum(0) - b)
    below = (float((drawn_B < middle).mean()) + float((drawn_B <= middle).mean())) / 2
    bias = float(stats.norm.ppf(min(max(below, 1 / resamples), 1 - 1 / resamples)))
    centred = left_out.mean() - left_out
    spread = float((centred**2).sum())
    acceleration = float((centred**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0

    def quantile(level: float) -> float:
        z = bias + float(stats.norm.ppf(level))
        return float(np.quantile(drawn_B, float(stats.norm.cdf(bias + z / (1 - acceleration * z)))))

    return Interval(quantile(alpha / 2), quantile(1 - alpha / 2))


def pseudo_clusters(
    a_Ck: NDArray[np.float64], b_Ck: NDArray[np.float64], metric: ValueOfSums
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both arms with two clusters added: a copy of the one with the median difference between the arms, and the same
    with the arms swapped. The counterpart of `pseudo_rows`: if arms seldom differ, plain resampling may cover the truth
    only five times in six."""
    differ = np.flatnonzero((a_Ck != b_Ck).any(1))
    total = a_Ck.sum(0)
    effect = np.abs(metric(total - a_Ck[differ] + b_Ck[differ]) - metric(total))
    c = differ[np.argsort(effect, kind="stable")[len(differ) // 2]]
    return np.vstack([a_Ck, a_Ck[c], b_Ck[c]]), np.vstack([b_Ck, b_Ck[c], a_Ck[c]])


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values of a family of comparisons (Holm 1979), in the given order."""
    adjusted, floor = [0.0] * len(p_values), 0.0
    for place, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        floor = max(floor, min(1.0, p_values[i] * (len(p_values) - place)))
        adjusted[i] = floor
    return adjusted
