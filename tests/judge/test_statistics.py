"""Intervals against statsmodels and published tables, coverage on a grid, and no NaN anywhere."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from tunewright.judge import statistics


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (81, 263), (15, 148)])
def test_wilson_equals_statsmodels(k: int, n: int) -> None:
    assert np.allclose(statistics.wilson(k, n), proportion_confint(k, n, method="wilson"), atol=1e-12)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 1), (3, 9), (10, 10), (40, 12)])
def test_mcnemar_equals_statsmodels(b: int, c: int) -> None:
    expected = mcnemar([[5, b], [c, 5]], exact=True).pvalue if b + c else 1.0
    assert math.isclose(statistics.mcnemar_exact(b, c), min(1.0, expected), abs_tol=1e-12)


@pytest.mark.parametrize(
    ("table", "low", "high"), [((36, 12, 2, 0), 0.0569, 0.3404), ((20, 12, 2, 16), 0.0562, 0.3292)]
)
def test_newcombe_equals_the_published_examples(table: tuple[int, int, int, int], low: float, high: float) -> None:
    """Newcombe 1998, worked pairs with n = 50, method 10, to the four printed digits."""
    assert np.allclose(statistics.newcombe_paired(*table), (low, high), atol=5e-5)


counts = st.integers(0, 30)


@given(counts, counts, counts, counts)
def test_the_paired_interval_is_an_interval_and_mirrors(a: int, b: int, c: int, d: int) -> None:
    low, high = statistics.newcombe_paired(a, b, c, d)
    n = a + b + c + d
    assert -1 <= low <= high <= 1
    if n:
        assert low - 1e-9 <= (b - c) / n <= high + 1e-9
        assert high > low
    assert np.allclose(statistics.newcombe_paired(a, c, b, d), (-high, -low))


@settings(max_examples=80)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(0, 4)), max_size=25))
def test_no_input_gives_nan(rows: list[tuple[float, float, int]]) -> None:
    """n = 0, n = 1, all tied, all discordant, one cluster: a verdict with finite numbers."""
    a, b, clusters = ([r[i] for r in rows] for i in range(3))
    for x, y in ((a, b), ([round(v) for v in a], [round(v) for v in b]), (a, a)):
        compared = statistics.compare(x, y, clusters)
        numbers = [compared.difference, *compared.interval, compared.p_value]
        assert all(math.isfinite(v) for v in numbers)
        assert compared.verdict in ("BETTER", "WORSE", "PRACTICALLY EQUAL", "CANNOT TELL")
        assert (compared.rows_needed is not None) == (compared.verdict == "CANNOT TELL")
    if not rows:
        assert statistics.compare([], [], []).verdict == "CANNOT TELL"


def test_verdicts() -> None:
    ones, clusters = np.ones(200), list(range(200))
    assert statistics.compare(ones, 0 * ones, clusters).verdict == "BETTER"
    assert statistics.compare(0 * ones, ones, clusters).verdict == "WORSE"
    assert statistics.compare(ones, ones, clusters).verdict == "PRACTICALLY EQUAL"
    assert statistics.compare(ones[:10], ones[:10], clusters[:10]).verdict == "CANNOT TELL"
    assert statistics.compare(ones * 1.1, ones * 1.4, clusters, higher_is_better=False, bound=16).verdict == "BETTER"


# Rows, the accuracies of both arms, and the fraction of rows on which they differ: from arms that almost never differ
# to arbitrary ones.
GRID = [
    (20, 0.98, 0.97, 0.03),
    (50, 0.98, 0.97, 0.03),
    (100, 0.98, 0.97, 0.03),
    (30, 0.97, 0.92, 0.1),
    (100, 0.97, 0.92, 0.1),
    (50, 0.75, 0.65, 0.35),
    (200, 0.75, 0.65, 0.35),
]


@pytest.mark.parametrize(("n", "p", "q", "disagree"), GRID)
def test_coverage_of_the_paired_interval(n: int, p: float, q: float, disagree: float) -> None:
    """The 95% interval covers the truth in at least 93% of 2,000 draws, also where the percentile bootstrap covers a
    third."""
    only_first, only_second = (disagree + p - q) / 2, (disagree - p + q) / 2
    both = p - only_first
    draw = np.random.default_rng(n).multinomial(n, [both, only_first, only_second, 1 - both - disagree], size=2000)
    covered = 0
    for table in draw:
        low, high = statistics.newcombe_paired(*map(int, table))
        covered += low <= p - q <= high
    assert covered / 2000 >= 0.93


@pytest.mark.parametrize("most", [1.0, pytest.param(0.1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("a", [1.0, 3.0])
@pytest.mark.parametrize(("n", "p", "q", "disagree"), GRID)
def test_coverage_for_graded_scores_that_seldom_differ(
    n: int, p: float, q: float, disagree: float, a: float, most: float
) -> None:
    """Field F1 near its ceiling: few rows differ, by varying amounts. The plain t interval covers as little as 87 %
    here."""
    only_first, only_second = (disagree + p - q) / 2, (disagree - p + q) / 2
    draw = np.random.default_rng(n)
    sign = draw.choice([1.0, -1.0, 0.0], p=[only_first, only_second, 1 - disagree], size=(2000, n))
    apart = sign * most * draw.beta(1, a, size=(2000, n))
    truth = (only_first - only_second) * most / (1 + a)
    covered = own = 0
    for d in apart:
        c = statistics.compare(np.full(n, 0.5) + d / 2, np.full(n, 0.5) - d / 2, range(n))
        covered += c.interval[0] <= truth <= c.interval[1]
        low, high = statistics.mean_interval(0.9 + d / 10, range(n))
        own += low <= 0.9 + truth / 10 <= high
    assert covered / 2000 >= 0.93
    assert own / 2000 >= 0.93


def test_the_pseudo_rows_cost_little_where_all_rows_differ() -> None:
    d = np.random.default_rng(1).normal(0.02, 0.06, 100)
    low, high, _ = statistics.clustered_interval(d, range(100), pseudo=False)
    wide_low, wide_high, _ = statistics.clustered_interval(d, range(100))
    assert wide_high - wide_low == pytest.approx(high - low, rel=0.03)


def test_coverage_of_the_clustered_interval() -> None:
    """Five rows per cluster that share half their noise: clustering keeps the coverage that independent rows would
    lose."""
    draw = np.random.default_rng(0)
    covered = naive = 0
    for _ in range(1000):
        shared = np.repeat(draw.normal(size=30), 5)
        d = 0.1 * (shared + draw.normal(size=150)) / math.sqrt(2) + 0.05
        low, high, _ = statistics.clustered_interval(d, np.repeat(np.arange(30), 5).tolist())
        covered += low <= 0.05 <= high
        low, high, _ = statistics.clustered_interval(d, range(150))
        naive += low <= 0.05 <= high
    assert covered / 1000 >= 0.93
    assert naive / 1000 < 0.9


@settings(max_examples=80)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=25), st.integers(2, 5), st.booleans())
def test_rows_that_are_answered_alike_count_as_one(rows: list[tuple[float, float]], copies: int, graded: bool) -> None:
    first, second = (np.array([r[i] if graded else round(r[i]) for r in rows]) for i in range(2))
    alone = statistics.compare(first, second, range(len(rows)))
    groups = np.repeat(np.arange(len(rows)), copies).tolist()
    alike = statistics.compare(np.repeat(first, copies), np.repeat(second, copies), groups)
    assert alike.verdict == alone.verdict
    assert np.allclose([*alike.interval, alike.p_value], [*alone.interval, alone.p_value], atol=1e-9)
    own = [statistics.mean_interval(x, g) for x, g in ((first, range(len(rows))), (np.repeat(first, copies), groups))]
    assert np.allclose(own[0], own[1], atol=1e-9)


def test_power_tables() -> None:
    """Known orders of magnitude: with 100 rows and 20% disagreement, about 13 points can be detected (exact table:
    12.8)."""
    assert abs(statistics.detectable(100, 0.2) - 0.128) < 0.01
    assert abs(statistics.detectable(500, 0.1) - 0.041) < 0.005
    n = statistics.rows_needed(math.sqrt(0.2), 0.05)
    assert 600 <= n <= 660


@pytest.mark.parametrize(
    ("rows", "disagreement", "points"),
    [
        (30, 0.3, 27.4),
        (50, 0.2, 17.6),
        (100, 0.1, 8.8),
        (100, 0.3, 15.9),
        (200, 0.05, 4.4),
        (300, 0.4, 10.5),
        (1000, 0.2, 4.0),
    ],
)
def test_detectable_differences_of_the_exact_test(rows: int, disagreement: float, points: float) -> None:
    """Against a table found by simulation (reference note A3)."""
    assert abs(100 * statistics.detectable(rows, disagreement) - points) < 0.4


@pytest.mark.parametrize(("rows", "spread"), [(20, 0.4), (105, 0.4), (51, 0.1)])
def test_a_detectable_mean_is_detected_four_times_in_five(rows: int, spread: float) -> None:
    draw = np.random.default_rng(0)
    drawn = draw.normal(statistics.detectable_mean(rows, spread), spread, (4000, rows))
    low = np.array([statistics.clustered_interval(d, range(rows))[0] for d in drawn])
    assert abs((low > 0).mean() - 0.8) < 0.02
    assert statistics.detectable_mean(1, spread) == 1.0


def test_too_few_rows_detect_nothing() -> None:
    assert statistics.detectable(30, 0.1) == 1.0
    assert statistics.detectable(0) == 1.0


@pytest.mark.parametrize(("rows", "difference", "disagreement"), [(60, 0.15, 0.3), (150, 0.08, 0.2)])
def test_power_is_the_fraction_of_simulated_rejections(rows: int, difference: float, disagreement: float) -> None:
    draw = np.random.default_rng(0)
    split = [(disagreement + difference) / 2, (disagreement - difference) / 2, 1 - disagreement]
    tables = draw.multinomial(rows, split, size=2000)
    rejected = np.mean([statistics.mcnemar_exact(int(b), int(c)) <= 0.05 for b, c, _ in tables])
    assert abs(statistics.mcnemar_power(rows, difference, disagreement) - rejected) < 0.03


def ratio(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / np.maximum(sums[..., 1], 1e-9)


def drawn(draw: np.random.Generator, clusters: int, better: float) -> tuple[np.ndarray, np.ndarray]:
    """(matches, totals) of two arms on the same clusters; some clusters are hard for both."""
    totals = draw.integers(1, 8, clusters)
    ease = draw.beta(4, 2, clusters)
    arms = [draw.binomial(totals, np.clip(ease + shift, 0, 1)) for shift in (better, 0.0)]
    return np.stack([arms[0], totals], 1), np.stack([arms[1], totals], 1)


def test_the_corpus_interval_is_scipys_bca() -> None:
    from scipy import stats

    a, b = drawn(np.random.default_rng(3), 50, 0.1)
    interval = statistics.corpus_interval(a, b, ratio)
    assert interval is not None
    a, b = statistics.pseudo_clusters(a, b, ratio)

    def difference(rows: np.ndarray, axis: int = -1) -> np.ndarray:
        return ratio(a[rows].sum(axis - 1 if rows.ndim > 1 else 0)) - ratio(
            b[rows].sum(axis - 1 if rows.ndim > 1 else 0)
        )

    theirs = stats.bootstrap(
        (np.arange(52),),
        lambda rows, axis=-1: np.apply_along_axis(difference, axis, rows),
        method="BCa",
        n_resamples=4000,
        rng=1,
    ).confidence_interval
    assert np.allclose(interval, (theirs.low, theirs.high), atol=0.006)


@pytest.mark.parametrize(("n", "p", "q", "disagree"), [row for row in GRID if row[0] * row[3] >= 3])
def test_the_corpus_interval_covers(n: int, p: float, q: float, disagree: float) -> None:
    """Micro-averages of rows with one to five fields; runs without an interval (fewer than five rows differ) do not
    count."""
    only_first, only_second = (disagree + p - q) / 2, (disagree - p + q) / 2
    draw = np.random.default_rng(n)
    given = hits = 0
    for seed in range(700):
        fields = draw.integers(1, 6, n).astype(float)
        kind = draw.choice(4, p=[p - only_first, only_first, only_second, 1 - p - only_second], size=n)
        a, b = (np.stack([fields * np.isin(kind, right), fields], 1) for right in ((0, 1), (0, 2)))
        interval = statistics.corpus_interval(a, b, ratio, resamples=800, seed=seed)
        given += interval is not None
        hits += interval is not None and interval[0] <= p - q <= interval[1]
    assert given >= 100
    assert hits / given >= 0.93


def test_few_or_equal_clusters_have_no_corpus_interval_and_others_have_one_of_positive_width() -> None:
    same = np.array([[1, 1]] * 20)
    for few in (same, same[:1], same[:0], same * 0):
        assert statistics.corpus_interval(few, few, ratio, resamples=200) is None
    interval = statistics.corpus_interval(same, same * [0, 1], ratio, resamples=200)
    assert interval is not None
    assert -1 <= interval[0] < 1 == interval[1]


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_equals_statsmodels(p_values: list[float]) -> None:
    from statsmodels.stats import multitest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", int)  # which multipletests does at each call: 0.3 s beside torch
        expected = multitest.multipletests(p_values, method="holm")[1] if p_values else []
    assert np.allclose(statistics.holm(p_values), expected, atol=1e-12)
