"""Quantiles of request times, and the price of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tunewright.core import records
from tunewright.core.records import StepLine, Training
from tunewright.core.run_folder import Run
from tunewright.stages import cost


def test_order_statistics_bound_the_quantiles() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        quantiles = cost.quantiles(rng.exponential(size=40))
        hits += quantiles.p50[1] <= np.log(2) <= quantiles.p50[2]
    assert hits >= 0.93 * 200


def test_a_continued_training_costs_what_all_its_processes_took(tmp_path: Path) -> None:
    run = Run(tmp_path)
    line = StepLine(step=1, loss=1.0, lr=0.1, grad_norm=1.0, tokens=1, computed=1, supervised=1.0, seconds=30.0)
    records.write_lines(run.metrics, [line.model_copy(update={"step": step}) for step in (1, 2, 3)])
    done = Training(
        steps=3, stopped_early=False, best_step=None, best_dev_loss=None, first_dev_loss=None, seconds=31.0, tokens=3,
        weights_sha256="", peak_gb=1.0, trained=1, total=1,
    )  # fmt: skip
    for last, expected in ((31.0, 90.0), (95.0, 95.0)):  # the last step alone; all of them, and dev losses
        records.write(run.training, done.model_copy(update={"seconds": last}))
        assert cost.training_seconds(run) == pytest.approx(expected)
