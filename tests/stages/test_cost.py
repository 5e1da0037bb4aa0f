"""Quantiles of request times, and the price of training."""

from __future__ import annotations

import numpy as np

from tunewright.stages import cost


def test_order_statistics_bound_the_quantiles() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        quantiles = cost.quantiles(rng.exponential(size=40))
        hits += quantiles.p50[1] <= np.log(2) <= quantiles.p50[2]
    assert hits >= 0.93 * 200
