"""Intervals against statsmodels and published tables, coverage on the grid, and no NaN anywhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from tunewright import statistics


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (81, 263), (15, 148)])
def test_wilson_equals_statsmodels(k: int, n: int) -> None:
    assert np.allclose(statistics.wilson(k, n), proportion_confint(k, n, method="wilson"), atol=1e-12)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 1), (3, 9), (10, 10), (40, 12)])
def test_mcnemar_equals_statsmodels(b: int, c: int) -> None:
    expected = mcnemar([[5, b], [c, 5]], exact=True).pvalue if b + c else 1.0
    assert math.isclose(statistics.mcnemar_exact(b, c), min(1.0, expected), abs_tol=1e-12)


@pytest.mark.parametrize(("table", "low", "high"), [((36, 12, 2, 0), 0.0569, 0.3404), ((20, 12, 2, 16), 0.0562, 0.3292)])
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
        found = statistics.compare(x, y, clusters)
        numbers = [found.difference, *found.interval, found.p_value]
        assert all(math.isfinite(v) for v in numbers)
        assert found.verdict in ("BETTER", "WORSE", "PRACTICALLY EQUAL", "CANNOT TELL")
        assert (found.rows_needed is not None) == (found.verdict == "CANNOT TELL")
    if not rows:
        assert statistics.compare([], [], []).verdict == "CANNOT TELL"


def test_verdicts() -> None:
    ones, clusters = np.ones(200), list(range(200))
    assert statistics.compare(ones, 0 * ones, clusters).verdict == "BETTER"
    assert statistics.compare(0 * ones, ones, clusters).verdict == "WORSE"
    assert statistics.compare(ones, ones, clusters).verdict == "PRACTICALLY EQUAL"
    assert statistics.compare(ones[:10], ones[:10], clusters[:10]).verdict == "CANNOT TELL"
    assert statistics.compare(ones * 1.1, ones * 1.4, clusters, higher_is_better=False, bound=16).verdict == "BETTER"


@pytest.mark.parametrize(
    ("n", "p", "q", "disagree"),
    [
        (20, 0.98, 0.97, 0.03),
        (50, 0.98, 0.97, 0.03),
        (100, 0.98, 0.97, 0.03),
        (30, 0.97, 0.92, 0.1),
        (100, 0.97, 0.92, 0.1),
        (50, 0.75, 0.65, 0.35),
        (200, 0.75, 0.65, 0.35),
    ],
)
def test_coverage_of_the_paired_interval(n: int, p: float, q: float, disagree: float) -> None:
    """The 95 % interval covers the truth in at least 93 % of 2,000 draws, also where the percentile bootstrap covers a third."""
    only_first, only_second = (disagree + p - q) / 2, (disagree - p + q) / 2
    both = p - only_first
    draw = np.random.default_rng(n).multinomial(n, [both, only_first, only_second, 1 - both - disagree], size=2000)
    covered = 0
    for table in draw:
        low, high = statistics.newcombe_paired(*map(int, table))
        covered += low <= p - q <= high
    assert covered / 2000 >= 0.93


def test_coverage_of_the_clustered_interval() -> None:
    """Five rows a cluster that share half their noise: clustering keeps the coverage that rows taken alone would lose."""
    draw = np.random.default_rng(0)
    covered = naive = 0
    for _ in range(1000):
        shared = np.repeat(draw.normal(size=30), 5)
        d = 0.1 * (shared + draw.normal(size=150)) / math.sqrt(2) + 0.05
        low, high, _ = statistics.clustered_interval(d, np.repeat(np.arange(30), 5).tolist())
        covered += low <= 0.05 <= high
        low, high, _ = statistics.clustered_interval(d, list(range(150)))
        naive += low <= 0.05 <= high
    assert covered / 1000 >= 0.93
    assert naive / 1000 < 0.9


def test_power_tables() -> None:
    """Known order of size: with 100 rows and 20 % disagreement about 13 points can be found (exact table: 12.8)."""
    assert abs(statistics.detectable(100, 0.2) - 0.128) < 0.01
    assert abs(statistics.detectable(500, 0.1) - 0.041) < 0.005
    n = statistics.rows_needed(math.sqrt(0.2), 0.05)
    assert 600 <= n <= 660
