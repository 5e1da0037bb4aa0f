"""Are a model's label probabilities calibrated, and below which confidence should a person answer? Pure numpy/scipy.

Axes: R rows, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from tunewright.core.records.common import Interval
from tunewright.data.label_noise import tempered
from tunewright.data.scores import LabelProbs, Score
from tunewright.judge.statistics import wilson

Floats = NDArray[np.float64]
BINS = 10
MIN_PROB = 1e-9
ENOUGH_ROWS = 300  # for a meaningful calibration error
MIN_ANSWERED_ROWS = 20  # at or above the hand-over threshold


class Predictions(NamedTuple):
    """The label probabilities and the right label of each row."""

    probs: Sequence[dict[str, float]]
    targets: Sequence[str]

    @classmethod
    def of(cls, scores: Sequence[Score]) -> Predictions:
        outputs = [s.answer.output for s in scores]
        return cls([m.probs for m in outputs if isinstance(m, LabelProbs)], [s.target for s in scores])


def log_loss(prob_RL: ArrayLike, right_R: ArrayLike) -> float:
    """Mean of -log p(right label), in nats. ``right_R``: the column of the right label."""
    prob = np.asarray(prob_RL, float)
    return float(-np.log(np.clip(prob[np.arange(len(prob)), np.asarray(right_R)], MIN_PROB, 1.0)).mean())


def temperature(prob_RL: ArrayLike, right_R: ArrayLike) -> float:
    """The temperature that minimises log loss (Guo et al. 2017, 1706.04599), between 1/20 and 20; 1.0 without rows."""
    if not len(np.asarray(right_R)):
        return 1.0
    best = optimize.minimize_scalar(
        lambda log_t: log_loss(tempered(prob_RL, float(np.exp(log_t))), right_R), bounds=(-3.0, 3.0), method="bounded"
    )
    return float(np.exp(best.x))


def calibration_error(confidence_R: ArrayLike, right_R: ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error over bins of equal row count: the mean gap between confidence and accuracy."""
    confidence, right = np.asarray(confidence_R, float), np.asarray(right_R, float)
    return float(_binned_errors(confidence[None], right[None], bins)[0]) if len(confidence) else 0.0


def _binned_errors(confidence_SR: Floats, right_SR: Floats, bins: int) -> Floats:
    """`calibration_error` of each of several samples."""
    rows = confidence_SR.shape[-1]
    order = np.argsort(confidence_SR, axis=-1, kind="stable")
    gap_SR = np.take_along_axis(confidence_SR - right_SR, order, axis=-1)
    starts = [part[0] for part in np.array_split(np.arange(rows), min(bins, rows))]
    return np.asarray(np.abs(np.add.reduceat(gap_SR, starts, axis=-1)).sum(-1) / rows, float)


def error_interval(
    confidence_R: ArrayLike, right_R: ArrayLike, ratio: float = 1.0, resamples: int = 1000, seed: int = 0
) -> Interval:
    """95% interval of the true calibration error; (0, 1) for fewer than two rows. ``ratio``: as in `kish_ratio`.

    The binned error is biased upwards, more so with fewer rows: with 300, even a perfect model has about 0.05, and
    subtracting a bootstrap estimate of the bias does not help. So each end uses a quantity that is valid whatever the
    bias: the lower end the gap between mean confidence and accuracy, which bounds the calibration error from below,
    minus a multiple of its standard error; the upper end the binned error plus a multiple of its bootstrapped spread.
    """
    confidence, right = np.asarray(confidence_R, float), np.asarray(right_R, float)
    rows = len(confidence)
    if rows < 2:
        return Interval(0.0, 1.0)
    z, gap = float(stats.norm.isf(0.05 / 2)) / ratio**0.5, confidence - right
    low = abs(float(gap.mean())) - z * float(gap.std(ddof=1)) / rows**0.5
    rng = np.random.Generator(np.random.Philox(key=seed))
    drawn_SR = rng.integers(0, rows, size=(resamples, rows))
    errors_S = _binned_errors(confidence[drawn_SR], right[drawn_SR], BINS)
    high = calibration_error(confidence, right) + z * float(errors_S.std())
    return Interval(max(0.0, low), min(1.0, high))


def coverage_curve(confidence_R: ArrayLike, right_R: ArrayLike) -> list[tuple[float, float, float]]:
    """(threshold, coverage, accuracy) if only rows with at least that confidence are answered, from the most confident
    row to all rows."""
    confidence, right = np.asarray(confidence_R, float), np.asarray(right_R, float)
    order = np.argsort(-confidence, kind="stable")
    accuracy = right[order].cumsum() / np.arange(1, len(order) + 1)
    last = np.r_[np.diff(confidence[order]) != 0, True] if len(order) else np.zeros(0, bool)
    return [(float(confidence[order[i]]), (i + 1) / len(order), float(accuracy[i])) for i in np.flatnonzero(last)]


def handover(confidence_R: ArrayLike, right_R: ArrayLike, target_accuracy: float) -> float | None:
    """The lowest confidence threshold at which the answered rows reach ``target_accuracy``; None if there is none.

    At least `MIN_ANSWERED_ROWS` rows must reach it, so that a lucky few do not decide it.
    """
    rows = len(np.asarray(right_R))
    curve = coverage_curve(confidence_R, right_R)
    good = [
        t for t, coverage, accuracy in curve if accuracy >= target_accuracy and coverage * rows >= MIN_ANSWERED_ROWS
    ]
    return min(good) if good else None


def report(
    labels: Sequence[str], dev: Predictions, test: Predictions, target_accuracy: float, ratio: float = 1.0
) -> dict[str, Any]:
    """The calibration of an arm. Temperature and threshold are chosen on dev; everything reported is measured on test,
    of whose rows ``ratio`` are independent (see `kish_ratio`)."""
    dev_RL, dev_R = _arrays(labels, dev)
    test_RL, test_R = _arrays(labels, test)
    t = temperature(dev_RL, dev_R)
    sides = {}
    for name, prob_RL in {"uncalibrated": test_RL, "calibrated": tempered(test_RL, t)}.items():
        confidence_R, right_R = _confidence(prob_RL, test_R)
        sides[name] = {
            "log_loss": log_loss(prob_RL, test_R),
            "brier": float(((prob_RL - np.eye(len(labels))[test_R]) ** 2).sum(1).mean()),
            "ece": calibration_error(confidence_R, right_R),
            "ece_interval": list(error_interval(confidence_R, right_R, ratio)),
        }
    confidence_R, right_R = _confidence(tempered(test_RL, t), test_R)
    threshold = handover(*_confidence(tempered(dev_RL, t), dev_R), target_accuracy)
    return {
        "temperature": t,
        **sides,
        "rows": len(test_R),
        "enough_rows": len(test_R) >= ENOUGH_ROWS,
        "target_accuracy": target_accuracy,
        "curve": coverage_curve(confidence_R, right_R),
        **({} if threshold is None else {"handover": _at_threshold(confidence_R, right_R, threshold, ratio)}),
    }


def _arrays(labels: Sequence[str], predictions: Predictions) -> tuple[Floats, NDArray[np.int64]]:
    """(prob_RL, the column of the right label) of the rows whose label is known."""
    column = {label: i for i, label in enumerate(labels)}
    known = [i for i, target in enumerate(predictions.targets) if target in column]
    prob_RL = np.array([[predictions.probs[i][x] for x in labels] for i in known]).reshape(-1, len(labels))
    return prob_RL, np.array([column[predictions.targets[i]] for i in known], int)


def _confidence(prob_RL: Floats, target_R: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """(probability of the chosen label, whether it is right) of each row."""
    return prob_RL.max(1), (prob_RL.argmax(1) == target_R).astype(float)


def _at_threshold(confidence_R: Floats, right_R: Floats, threshold: float, ratio: float) -> dict[str, Any]:
    """What happens if only rows with at least this confidence are answered."""
    kept_R = confidence_R >= threshold
    right, answered = int(right_R[kept_R].sum()), int(kept_R.sum())
    return {
        "threshold": threshold,
        "answered": answered / len(right_R),
        "accuracy": right / answered if answered else None,
        "interval": list(wilson(ratio * right, ratio * answered)),
    }
