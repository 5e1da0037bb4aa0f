"""Do the shares that a model gives its labels mean what they say, and when should a person answer? Pure numpy/scipy.

Axes: R rows, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from tunewright.data.label_noise import tempered
from tunewright.judge.statistics import wilson

Floats = NDArray[np.float64]
BINS = 10
TINY = 1e-9
ENOUGH = 300


def log_loss(share_RL: ArrayLike, right_R: ArrayLike) -> float:
    """Mean of -log share of the right label, in nats."""
    share = np.asarray(share_RL, float)
    return float(-np.log(np.clip(share[np.arange(len(share)), np.asarray(right_R)], TINY, 1.0)).mean())


def temperature(share_RL: ArrayLike, right_R: ArrayLike) -> float:
    """The temperature with the least log loss (Guo et al. 2017, 1706.04599), between 1/20 and 20; 1.0 without rows."""
    if not len(np.asarray(right_R)):
        return 1.0
    found = optimize.minimize_scalar(
        lambda log_t: log_loss(tempered(share_RL, float(np.exp(log_t))), right_R), bounds=(-3.0, 3.0), method="bounded"
    )
    return float(np.exp(found.x))


def calibration_error(confidence_R: ArrayLike, right_R: ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error over bins of equally many rows: how far confidence lies from the share that is right."""
    confidence, right = np.asarray(confidence_R, float), np.asarray(right_R, float)
    if not len(confidence):
        return 0.0
    order = np.argsort(confidence, kind="stable")
    parts = [p for p in np.array_split(order, min(bins, len(order))) if len(p)]
    return float(sum(abs(confidence[p].mean() - right[p].mean()) * len(p) for p in parts) / len(confidence))


def error_interval(
    confidence_R: ArrayLike, right_R: ArrayLike, alpha: float = 0.05, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Interval of the true calibration error; (0, 1) for fewer than two rows.

    The binned error is biased upwards, the more the fewer the rows: with 300 even a perfect model shows some 0.05, and no shift by a
    bootstrap's own bias mends that. So each end stands on what holds whatever the bias: from below the gap between mean confidence
    and accuracy, which no calibration error is under, less its error; from above the binned error and its bootstrapped spread.
    """
    confidence, right = np.asarray(confidence_R, float), np.asarray(right_R, float)
    rows = len(confidence)
    if rows < 2:
        return 0.0, 1.0
    z, gap = float(stats.norm.isf(alpha / 2)), confidence - right
    low = abs(float(gap.mean())) - z * float(gap.std(ddof=1)) / rows**0.5
    draw = np.random.Generator(np.random.Philox(key=seed))
    found = [calibration_error(confidence[p], right[p]) for p in draw.integers(0, rows, size=(resamples, rows))]
    high = calibration_error(confidence, right) + z * float(np.std(found))
    return max(0.0, low), min(1.0, high)


def coverage_curve(confidence_R: ArrayLike, right_R: ArrayLike) -> list[tuple[float, float, float]]:
    """(threshold, coverage, accuracy) for answering only rows with at least that confidence, from the surest row to all."""
    confidence, right = np.asarray(confidence_R, float), np.asarray(right_R, float)
    order = np.argsort(-confidence, kind="stable")
    accuracy = right[order].cumsum() / np.arange(1, len(order) + 1)
    last = np.r_[np.diff(confidence[order]) != 0, True] if len(order) else np.zeros(0, bool)
    return [(float(confidence[order[i]]), (i + 1) / len(order), float(accuracy[i])) for i in np.flatnonzero(last)]


def handover(confidence_R: ArrayLike, right_R: ArrayLike, wanted: float) -> float | None:
    """The lowest threshold above which the answers are right at least ``wanted`` of the time; None where no threshold does.

    It must hold for at least 20 rows, so that a lucky handful does not choose it.
    """
    rows = len(np.asarray(right_R))
    good = [t for t, coverage, accuracy in coverage_curve(confidence_R, right_R) if accuracy >= wanted and coverage * rows >= 20]
    return min(good) if good else None


def report(
    labels: Sequence[str],
    dev: tuple[Sequence[dict[str, float]], Sequence[str]],
    test: tuple[Sequence[dict[str, float]], Sequence[str]],
    wanted: float,
) -> dict[str, Any]:
    """calibration of an arm: temperature and threshold from dev, everything that is claimed from test."""
    place = {label: i for i, label in enumerate(labels)}

    def arrays(side: tuple[Sequence[dict[str, float]], Sequence[str]]) -> tuple[Floats, NDArray[np.int64]]:
        shares, targets = side
        known = [i for i, t in enumerate(targets) if t in place]
        return np.array([[shares[i][x] for x in labels] for i in known]).reshape(-1, len(labels)), np.array(
            [place[targets[i]] for i in known], int
        )

    dev_RL, dev_R = arrays(dev)
    test_RL, test_R = arrays(test)
    t = temperature(dev_RL, dev_R)
    sides = {}
    for name, (share_RL, right_R) in {"as_given": (test_RL, test_R), "tempered": (tempered(test_RL, t), test_R)}.items():
        sure_R, hit_R = share_RL.max(1), (share_RL.argmax(1) == right_R).astype(float)
        sides[name] = {
            "log_loss": log_loss(share_RL, right_R),
            "brier": float(((share_RL - np.eye(len(labels))[right_R]) ** 2).sum(1).mean()),
            "ece": calibration_error(sure_R, hit_R),
            "ece_interval": list(error_interval(sure_R, hit_R)),
        }
    sure_R, hit_R = tempered(test_RL, t).max(1), (test_RL.argmax(1) == test_R).astype(float)
    dev_sure_R, dev_hit_R = tempered(dev_RL, t).max(1), (dev_RL.argmax(1) == dev_R).astype(float)
    threshold = handover(dev_sure_R, dev_hit_R, wanted)
    found: dict[str, Any] = {
        "temperature": t,
        **sides,
        "rows": len(test_R),
        "enough_rows": len(test_R) >= ENOUGH,
        "wanted": wanted,
    }
    found["curve"] = coverage_curve(sure_R, hit_R)
    if threshold is not None:
        kept = sure_R >= threshold
        right, answered = int(hit_R[kept].sum()), int(kept.sum())
        low, high = wilson(right, answered)
        found["handover"] = {
            "threshold": threshold,
            "answered": answered / len(test_R),
            "accuracy": right / answered if answered else None,
            "interval": [low, high],
        }
    return found
