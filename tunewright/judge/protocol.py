"""The test protocol, written down and hashed before training: which arms answer which rows, and how the verdict is
decided. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from tunewright.core.config import ProveConfig
from tunewright.core.sampling import DECODINGS
from tunewright.data.dataset import Dataset
from tunewright.data.metrics import METRICS, Metric
from tunewright.data.text import content_hash
from tunewright.judge import statistics
from tunewright.judge.arms import decodings
from tunewright.judge.arms.arm import Arm
from tunewright.judge.statistics import Comparison

RULE = (
    "dev chooses one variant of every family of arms, for free text the decoding of each, and the best untrained arm "
    "as comparator; every chosen arm answers test once (and two of them some rows again, to measure noise); the "
    "verdict compares tuned with the comparator; it is BETTER only if tuned is shown to be better than every other "
    "untrained arm too, if the difference is larger than that noise, and, for free text with at least 10 rows, if the "
    "answers are shown to be likelier after their own question than after another; it is WORSE also if another "
    "untrained arm is shown to be better, by Holm's method; all other comparisons are "
    "exploratory and adjusted by Holm's method"
)


@dataclass(frozen=True)
class Protocol:
    """``arms``: the descriptions of each family's variants. ``detectable``: the difference that the test rows detect
    with power 0.8 (1.0 if none) if ``assumed`` holds; None if nothing can be assumed. ``list_order`` and
    ``number_tolerance``: how structured answers are compared; None for other tasks. ``decoding``: of free text, the
    settings among which dev chooses, by name. ``grader`` and ``check``: of answers to rows that have none.
    ``corpus``: hash of the documents that queries search."""

    rule: str
    metric: str
    higher_is_better: bool
    margin: float
    alpha: float
    arms: dict[str, tuple[str, ...]]
    max_new_tokens: int
    dev_rows: int
    test_rows: int
    rows_sha256: str
    detectable: float | None
    assumed: str
    list_order: str | None = None
    number_tolerance: float | None = None
    decoding: dict[str, dict[str, float]] | None = None
    grader: str | None = None
    check: str | None = None
    corpus: str | None = None

    @property
    def sha256(self) -> str:
        added = {k for k in ("grader", "check", "corpus") if getattr(self, k) is None}  # of protocols that had none
        fields = {k: v for k, v in asdict(self).items() if k not in added}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    @property
    def bound(self) -> float:
        """The largest score that is assumed to be possible."""
        return METRICS[self.metric].bound

    def compare(self, first: Sequence[float], second: Sequence[float], clusters: Sequence[int]) -> Comparison:
        """``first`` - ``second`` over the same rows, with this margin, alpha and direction."""
        return statistics.compare(
            first,
            second,
            clusters,
            margin=self.margin,
            alpha=self.alpha,
            higher_is_better=self.higher_is_better,
            bound=self.bound,
        )


def make(
    data: Dataset,
    config: ProveConfig,
    families: Mapping[str, Sequence[Arm]],
    dev: Sequence[int],
    test: Sequence[int],
    max_new_tokens: int,
) -> Protocol:
    """The protocol of a run: ``dev`` and ``test`` are the rows that all arms answer."""
    digest = hashlib.sha256()
    for side, rows in (("dev", dev), ("test", test)):
        for i in rows:
            digest.update(f"{side} {content_hash(data.examples[i].question)}\n".encode())
    ratio = statistics.kish_ratio([data.cluster[i] for i in test])
    detectable, assumed = _detectable(data.task.metric, round(len(test) * ratio), config.significance)
    return Protocol(
        rule=RULE,
        metric=data.task.metric.name,
        higher_is_better=data.task.metric.higher_is_better,
        margin=config.margin,
        alpha=config.significance,
        arms={family: tuple(arm.description for arm in variants) for family, variants in families.items()},
        max_new_tokens=max_new_tokens,
        dev_rows=len(dev),
        test_rows=len(test),
        rows_sha256=digest.hexdigest(),
        detectable=detectable,
        assumed=assumed,
        list_order=config.list_order if data.task.kind.compare else None,
        number_tolerance=config.number_tolerance if data.task.kind.compare else None,
        decoding={name: asdict(DECODINGS[name]) for name in config.decoding}
        if decodings.candidates(families["tuned"][0], data.task, config.decoding)
        else None,
        grader=repr(data.task.grader) if data.task.grader else None,
        check=repr(data.task.check) if data.task.check else None,
        corpus=data.task.corpus.sha256 if data.task.corpus else None,
    )


def _detectable(metric: Metric, rows: int, alpha: float) -> tuple[float | None, str]:
    if metric.disagreement is not None:
        percent = 100 * metric.disagreement
        return statistics.detectable(rows, metric.disagreement, alpha), f"the arms disagree on {percent:.0f}% of them"
    if metric.spread is not None:
        assumed = f"the differences of rows have a standard deviation of {metric.spread:g}"
        return statistics.detectable_mean(rows, metric.spread, alpha), assumed
    return None, ""
