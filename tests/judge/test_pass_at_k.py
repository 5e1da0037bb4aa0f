"""The highest reward of k samples, estimated from more: against its definition."""

from __future__ import annotations

import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.judge.pass_at_k import highest_of


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7), st.data())
def test_it_is_the_mean_over_all_choices_of_k(rewards: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(rewards)))
    wanted = np.mean([max(chosen) for chosen in itertools.combinations(rewards, k)])
    assert highest_of([rewards], k)[0] == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("right", range(11))
def test_of_right_and_wrong_it_is_pass_at_k(right: int) -> None:
    """As the paper defines it: 1 - C(n - c, k) / C(n, k)."""
    rewards = [1.0] * right + [0.0] * (10 - right)
    for k in range(1, 11):
        assert highest_of([rewards], k)[0] == pytest.approx(1 - comb(10 - right, k) / comb(10, k))


def test_it_is_unbiased_and_the_plain_formula_is_not() -> None:
    prob, n, k = 0.3, 5, 3
    expected = sum(
        comb(n, c) * prob**c * (1 - prob) ** (n - c) * highest_of([[1.0] * c + [0.0] * (n - c)], k)[0]
        for c in range(n + 1)
    )
    biased = sum(comb(n, c) * prob**c * (1 - prob) ** (n - c) * (1 - (1 - c / n) ** k) for c in range(n + 1))
    assert expected == pytest.approx(1 - (1 - prob) ** k)
    assert abs(biased - expected) > 0.01
