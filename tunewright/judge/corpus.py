"""Metrics of a whole set of rows that are functions of sums (micro-F1, macro-F1, chrF, bits per byte), compared with intervals.

No torch. Axes: R rows, k sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunewright.data.metrics import Task
from tunewright.judge.statistics import FEW, corpus_interval

Floats = NDArray[np.float64]


def compare(
    task: Task, tuned: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]], clusters: Sequence[int], alpha: float
) -> dict[str, Any]:
    """{"metric", "tuned", "comparator", "difference", "interval"} over the same rows; the interval is None where a label has
    too few rows to resample, or the arms differ too seldom. The difference is tuned - comparator, not oriented."""
    name, tuned_Rk, metric = sums(task, tuned)
    _, other_Rk, _ = sums(task, other)
    _, group = np.unique(np.asarray(clusters), return_inverse=True)

    def by_cluster(sums_Rk: Floats) -> Floats:
        whole = np.zeros((int(group.max()) + 1, sums_Rk.shape[1]))
        np.add.at(whole, group, sums_Rk)
        return whole

    a, b = float(metric(tuned_Rk.sum(0))), float(metric(other_Rk.sum(0)))
    found: dict[str, Any] = {"metric": name, "tuned": a, "comparator": b, "difference": a - b, "interval": None}
    if task.kind == "label" and min(np.unique([s["target"] for s in tuned], return_counts=True)[1]) < FEW:
        return {**found, "note": f"no interval: a label has fewer than {FEW} test rows"}
    interval = corpus_interval(by_cluster(tuned_Rk), by_cluster(other_Rk), metric, alpha)
    if interval is None:
        return {**found, "note": f"no interval: the arms differ in fewer than {FEW} groups"}
    return {**found, "interval": list(interval)}


def sums(task: Task, scores: Sequence[dict[str, Any]]) -> tuple[str, Floats, Callable[[Floats], Floats]]:
    """(name, what each row adds, the metric as a function of the sums)."""
    if task.kind == "json":
        return "field_micro_f1", np.array([s["fields"] for s in scores], float), _micro_f1
    if task.kind == "text":
        return "corpus_bits_per_byte", np.array([[s["nats"], s["bytes"]] for s in scores], float), _bits_per_byte
    if task.kind == "label":
        at = {label: i for i, label in enumerate(task.labels)}
        counts_RLk = np.zeros((len(scores), len(at), 3))
        for r, s in enumerate(scores):
            for column, said in ((1, s["target"]), (2, s["answer"])):
                if said in at:
                    counts_RLk[r, at[said], column] += 1
            if s["target"] == s["answer"] and s["target"] in at:
                counts_RLk[r, at[s["target"]], 0] += 1
        return "macro_f1", counts_RLk.reshape(len(scores), -1), _macro_f1
    from sacrebleu.metrics.chrf import CHRF

    counted = CHRF()._extract_corpus_statistics([s["answer"] for s in scores], [[s["target"] for s in scores]])
    return "corpus_chrf", np.array(counted, float), _chrf


def _micro_f1(sums: Floats) -> Floats:
    right, wrong, missed = np.moveaxis(sums, -1, 0)
    return _share(2 * right, 2 * right + wrong + missed)


def _bits_per_byte(sums: Floats) -> Floats:
    return np.asarray(_share(sums[..., 0], sums[..., 1]) / np.log(2))


def _macro_f1(sums: Floats) -> Floats:
    both, wanted, said = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
    f1, seen = _share(2 * both, wanted + said), wanted > 0
    return _share((f1 * seen).sum(-1), seen.sum(-1).astype(float))


def _chrf(sums: Floats) -> Floats:
    """chrF2 of the sums of (hypothesis, reference, matching) n-grams of order 1 to 6 (Popović 2015): precision and recall
    averaged over the orders that both sides have, as sacrebleu does without smoothing."""
    said, wanted, both = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
    counted = (said > 0) & (wanted > 0)
    orders = counted.sum(-1).astype(float)
    precision = _share((_share(both, said) * counted).sum(-1), orders)
    recall = _share((_share(both, wanted) * counted).sum(-1), orders)
    return _share(5 * precision * recall, 4 * precision + recall)


def _share(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros(np.broadcast(part, whole).shape), where=whole > 0)
