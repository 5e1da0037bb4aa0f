"""Calibration: planted over- and under-confidence is undone, intervals cover, the threshold reaches its target."""

from __future__ import annotations

import numpy as np
import pytest

from tunewright.data import label_noise
from tunewright.judge import calibration
from tunewright.judge.calibration import Predictions


def draws(rows: int, sharpness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities raised to a power: over-confident above 1, under-confident below."""
    rng = np.random.default_rng(seed)
    true = rng.dirichlet([1.0, 1.0, 1.0], rows)
    right = (true.cumsum(1) > rng.random((rows, 1))).argmax(1)
    bent = true**sharpness
    return bent / bent.sum(1, keepdims=True), right


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_over_and_under_confidence(sharpness: float) -> None:
    prob, right = draws(4000, sharpness)
    assert calibration.temperature(prob, right) == pytest.approx(sharpness, rel=0.1)
    calibrated = label_noise.tempered(prob, calibration.temperature(prob, right))
    assert calibration.log_loss(calibrated, right) <= calibration.log_loss(prob, right) + 1e-9
    assert (calibrated.argmax(1) == prob.argmax(1)).all()


def test_calibration_error_and_its_interval() -> None:
    prob, right = draws(4000, 1.0)
    sure, hit = prob.max(1), prob.argmax(1) == right
    assert calibration.calibration_error(sure, hit) < 0.03
    low, high = calibration.error_interval(sure, hit)
    assert low < 0.03
    bent, right = draws(4000, 3.0)
    assert calibration.calibration_error(bent.max(1), bent.argmax(1) == right) > high
    for n in (0, 1):
        assert np.isfinite(calibration.calibration_error(sure[:n], hit[:n]))
        assert calibration.error_interval(sure[:n], hit[:n]) == (0.0, 1.0)


@pytest.mark.parametrize("rows", [100, 300])
@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.0])
def test_the_interval_of_the_calibration_error_covers(rows: int, sharpness: float) -> None:
    """Also for a calibrated model, whose binned error is several times the true one."""
    prob, right = draws(200_000, sharpness)
    sure, hit = prob.max(1), (prob.argmax(1) == right).astype(float)
    truth = calibration.calibration_error(sure, hit, bins=200)
    draw = np.random.default_rng(rows)
    covered = 0
    for seed in range(300):
        pick = draw.integers(0, len(sure), rows)
        low, high = calibration.error_interval(sure[pick], hit[pick], resamples=100, seed=seed)
        covered += low <= truth <= high
    assert covered / 300 >= 0.93


def test_coverage_and_the_handover_threshold() -> None:
    prob, right = draws(2000, 1.0)
    sure, hit = prob.max(1), prob.argmax(1) == right
    curve = calibration.coverage_curve(sure, hit)
    assert [c for _, c, _ in curve] == sorted(c for _, c, _ in curve)
    assert curve[-1][1] == 1.0
    assert curve[-1][2] == pytest.approx(hit.mean())
    threshold = calibration.handover(sure, hit, 0.9)
    assert threshold is not None
    assert hit[sure >= threshold].mean() >= 0.9
    assert calibration.handover(sure, np.zeros(2000), 0.9) is None
    rows = [dict(zip("abc", map(float, p), strict=True)) for p in prob]
    targets = ["abc"[i] for i in right]
    dev, test = Predictions(rows[:1000], targets[:1000]), Predictions(rows[1000:], targets[1000:])
    report = calibration.report("abc", dev, test, 0.9)
    assert report["temperature"] == pytest.approx(1.0, abs=0.15)
    assert report["handover"]["interval"][0] < report["handover"]["accuracy"] < report["handover"]["interval"][1]
    copied = Predictions(rows[1000:] * 4, targets[1000:] * 4)
    of_copies = calibration.report("abc", dev, copied, 0.9, ratio=1 / 4)  # copies of rows show no more than the rows
    assert of_copies["handover"] == {**report["handover"], "interval": pytest.approx(report["handover"]["interval"])}
    for side in ("calibrated", "uncalibrated"):
        ends = [np.diff(x[side]["ece_interval"])[0] for x in (report, of_copies)]
        assert ends[1] == pytest.approx(ends[0], rel=0.25)
    assert "handover" not in calibration.report("abc", Predictions([], []), Predictions(rows[:5], targets[:5]), 0.9)
