"""Corpus metrics (data/corpus_metrics.py) of two arms, compared with an interval. No torch.

Axes: R rows, C clusters, k sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tunewright.data.corpus_metrics import Floats
from tunewright.data.scores import Score
from tunewright.data.task import Task
from tunewright.judge.statistics import MIN_CLUSTERS, corpus_interval

MIN_LABEL_ROWS = 5  # for resampling the rows of a label


def compare(
    task: Task, tuned: Sequence[Score], other: Sequence[Score], clusters: Sequence[int], alpha: float
) -> dict[str, Any]:
    """{"metric", "tuned", "comparator", "difference", "interval"} over the same rows. The difference is tuned -
    comparator, even if lower is better. The interval is None, and "note" gives the reason, if a label has too few rows
    to resample or the arms differ in too few clusters."""
    metric, labels = task.kind.corpus, task.labels or task.label_set
    tuned_Rk, other_Rk = metric.sums(tuned, labels), metric.sums(other, labels)
    _, group = np.unique(np.asarray(clusters), return_inverse=True)

    def by_cluster(sums_Rk: Floats) -> Floats:
        sums_Ck = np.zeros((int(group.max()) + 1, sums_Rk.shape[1]))
        np.add.at(sums_Ck, group, sums_Rk)
        return sums_Ck

    a, b = float(metric.value(tuned_Rk.sum(0))), float(metric.value(other_Rk.sum(0)))
    result: dict[str, Any] = {"metric": metric.name, "tuned": a, "comparator": b, "difference": a - b, "interval": None}
    if metric.by_label and min(np.unique([s.target for s in tuned], return_counts=True)[1]) < MIN_LABEL_ROWS:
        return {**result, "note": f"no interval: a label has fewer than {MIN_LABEL_ROWS} test rows"}
    interval = corpus_interval(by_cluster(tuned_Rk), by_cluster(other_Rk), metric.value, alpha)
    if interval is None:
        return {**result, "note": f"no interval: the arms differ in fewer than {MIN_CLUSTERS} groups"}
    return {**result, "interval": list(interval)}
