"""Learning curves: intervals cover other rows and seeds; forecasts are only made where they would have been right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tunewright.judge import extrapolation


def measured(sizes: list[int], error: Any, rows: int = 400, seeds: int = 3, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(rng.random((seeds, rows)) > error(n)).astype(float) for n in sizes]


def test_the_last_doubling_has_an_interval_and_a_verdict() -> None:
    rng = np.random.default_rng(0)
    half, better = (rng.random((1, 400)) > 0.5).astype(float), (rng.random((1, 400)) > 0.2).astype(float)
    doubling = extrapolation.last_doubling(better, half, list(range(400)), 0.05, 0.02)
    assert doubling["outcome"] == "helps"
    assert doubling["interval"][0] < doubling["gain"] < doubling["interval"][1]
    assert extrapolation.last_doubling(half, half, list(range(400)), 0.05, 0.02)["outcome"] == "does not visibly help"
    assert (
        extrapolation.last_doubling(half[:, :9], better[:, :9], list(range(9)), 0.05, 0.02)["outcome"]
        == "may or may not help"
    )
    three = np.repeat(half, 3, axis=0)
    uneven = three.copy()
    uneven[0] = 1.0
    wide = extrapolation.last_doubling(uneven, three, list(range(400)), 0.05, 0.02)["interval"]
    assert wide[1] - wide[0] > 0.3  # seeds that disagree widen it


@pytest.mark.parametrize("spread", [0.0, 0.3, 0.6])
def test_the_interval_of_a_doubling_holds_for_other_rows_and_other_seeds(spread: float) -> None:
    rng = np.random.default_rng(0)

    def right(ability: np.ndarray, level: float) -> np.ndarray:  # three seeds, each better or worse on every row
        return 1 / (1 + np.exp(-(ability + level + rng.normal(0, spread, (3, 1)))))

    many = rng.normal(0, 1.5, (1, 20_000))
    truth = np.mean([(right(many, 1.0) - right(many, 0.5)).mean() for _ in range(100)])
    held = 0
    for _ in range(300):
        ability = rng.normal(0, 1.5, (1, 80))
        whole, half = ((rng.random((3, 80)) < right(ability, level)).astype(float) for level in (1.0, 0.5))
        low, high = extrapolation.last_doubling(whole, half, list(range(80)), 0.05, 0.02)["interval"]
        held += low <= truth <= high
    assert held / 300 >= 0.93


def test_forecasts_are_made_only_where_they_would_have_been_right() -> None:
    sizes = [100, 200, 400, 800]
    power = extrapolation.forecast(sizes, measured(sizes, lambda n: 0.6 * (n / 100) ** -0.5), resamples=40)
    assert power["available"], power
    assert power["interval"][0] <= 1 - 0.6 * 16**-0.5 <= power["interval"][1]
    jump = extrapolation.forecast(sizes, measured(sizes, lambda n: 0.5 if n < 800 else 0.05), resamples=40)
    assert not jump["available"]
    assert "misses" in jump["reason"]
    assert not extrapolation.forecast(sizes[:2], measured(sizes[:2], lambda n: 0.5))["available"]
