"""The choice among recipes: the default is kept when nothing is better, and a better recipe is used."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.judge import recipes

ROWS, SEEDS, ALPHA = 60, 2, 0.05


def swept(draw: np.random.Generator, effects: list[float], seed_noise: float, row_noise: float) -> int:
    """The number of the recipe that a sweep with these true losses chooses."""
    count = len(effects)
    mean_KS = np.array(effects)[:, None] + draw.normal(0, seed_noise, (count, SEEDS))
    nats_KSR = mean_KS[:, :, None] + draw.normal(0, row_noise, (count, SEEDS, ROWS))
    alive = list(range(count))
    for fraction in recipes.RUNGS[:-1]:  # earlier losses are noisier
        early = nats_KSR[:, 0].mean(1) + draw.normal(0, seed_noise * (1 - fraction), count)
        alive = recipes.kept({n: float(early[n]) for n in alive}, 0)
    best = min((n for n in alive if n), key=lambda n: float(nats_KSR[n, 0].mean()))
    _, (_, high) = recipes.difference(nats_KSR[best], nats_KSR[0], range(ROWS), ALPHA, count - 1)
    return best if high < 0 else 0


@pytest.mark.parametrize("count", [2, 4, 12])
@pytest.mark.parametrize("seed_noise", [0.0, 0.01, 0.1])
def test_the_default_is_kept_among_equal_recipes(count: int, seed_noise: float) -> None:
    draw = np.random.default_rng(100 + count)
    kept = sum(swept(draw, [1.0] * count, seed_noise, 0.2) == 0 for _ in range(800))
    assert kept >= 0.95 * 800


def test_a_recipe_that_is_much_better_is_chosen() -> None:
    draw = np.random.default_rng(0)
    effects = [1.0, 1.05, 0.9, 1.1, 0.6, 1.0, 1.0, 1.2, 1.0, 0.95, 1.0, 1.0]
    assert sum(swept(draw, effects, 0.005, 0.1) == 4 for _ in range(20)) >= 18


@given(st.dictionaries(st.integers(1, 30), st.floats(-5, 5), min_size=1), st.floats(-5, 5))
def test_half_of_the_recipes_are_kept_the_default_and_the_best_among_them(
    losses: dict[int, float], default: float
) -> None:
    every = {0: default, **losses}
    kept = recipes.kept(every, 0)
    assert 0 in kept
    assert len(kept) == max(2, -(-len(every) // 2))
    assert min(losses.values()) == min(losses[n] for n in kept if n)
    assert all(losses[n] <= losses[m] for n in kept if n for m in losses if m not in kept)


def test_the_interval_covers_the_difference() -> None:
    draw, covered = np.random.default_rng(1), 0
    for _ in range(400):
        first = draw.normal(0, 0.05, 2)[:, None] + draw.normal(0, 0.3, (2, ROWS))
        second = draw.normal(0, 0.05, 2)[:, None] + draw.normal(0, 0.3, (2, ROWS))
        _, (low, high) = recipes.difference(first, second, range(ROWS), ALPHA, 1)
        covered += low <= 0.0 <= high
    assert covered >= 0.93 * 400


def test_rows_of_one_cluster_count_as_one() -> None:
    draw = np.random.default_rng(2)
    own = np.repeat(draw.normal(0, 1, 10), 6)
    zero = np.zeros((1, ROWS))
    _, wide = recipes.difference(own[None], zero, np.repeat(range(10), 6), ALPHA, 1)
    _, narrow = recipes.difference(own[None], zero, range(ROWS), ALPHA, 1)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_more_comparisons_widen_the_interval() -> None:
    draw = np.random.default_rng(3)
    first, second = draw.normal(0, 1, (2, 3, ROWS))
    widths = [
        high - low for _, (low, high) in (recipes.difference(first, second, range(ROWS), ALPHA, n) for n in (1, 11))
    ]
    assert widths[1] > 1.2 * widths[0]


def test_equal_losses_differ_by_nothing() -> None:
    same = np.ones((2, ROWS))
    assert recipes.difference(same, same, range(ROWS), ALPHA, 3) == (0.0, (0.0, 0.0))
