"""What will be asked of the test rows, written down and hashed before training. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunewright.core.config import ProveConfig
from tunewright.data.dataset import Dataset
from tunewright.data.examples import content_hash, question
from tunewright.data.metrics import HIGHER_IS_BETTER
from tunewright.judge import statistics
from tunewright.judge.arms.families import Arm
from tunewright.judge.statistics import Comparison

RULE = (
    "dev chooses one variant of every family of arms, and the best untrained arm as comparator; every chosen arm answers test "
    "once; the verdict is tuned against the comparator, and BETTER only where tuned is shown to be better than every other untrained "
    "arm too; all other comparisons are exploratory and adjusted by Holm"
)

# How two arms' scores differ row by row: of right/wrong scores the share of rows, of others the standard deviation (the
# largest in the examples' reports, rounded up). Of bits per byte no such thing is known before the run.
DISAGREEMENT = 0.3
SPREAD = {"field_f1": 0.4, "chrf": 0.1}


@dataclass(frozen=True)
class Protocol:
    """``arms``: family -> what its variants are. ``detectable``: the difference that the test rows find with power 0.8 if
    ``assumed`` holds; none where nothing can be assumed."""

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

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def bound(self) -> float:
        """The largest score that is taken to be possible: 1, or 16 bits a byte."""
        return 1.0 if self.higher_is_better else 16.0

    def compare(self, first: Sequence[float], second: Sequence[float], clusters: Sequence[int]) -> Comparison:
        """``first`` - ``second`` over the same rows, with this margin, alpha and direction."""
        how = {"margin": self.margin, "alpha": self.alpha, "bound": self.bound}
        return statistics.compare(first, second, clusters, higher_is_better=self.higher_is_better, **how)


def doubts(verdict: dict[str, Any]) -> list[str]:
    """The untrained arms that a tuned model, though it beats the comparator, is not shown to beat: what keeps it from BETTER."""
    return list(verdict["unbeaten"]) if verdict["interval"][0] > 0 else []


def make(
    data: Dataset, asked: ProveConfig, families: dict[str, list[Arm]], dev: Sequence[int], test: Sequence[int], limit: int
) -> Protocol:
    digest = hashlib.sha256()
    for side, rows in (("dev", dev), ("test", test)):
        for i in rows:
            digest.update(f"{side} {content_hash(question(data.examples[i]))}\n".encode())
    worth = statistics.kish_ratio([data.cluster[i] for i in test])
    detectable, assumed = _detectable(data.task.metric, round(len(test) * worth), asked.significance)
    return Protocol(
        RULE,
        data.task.metric,
        HIGHER_IS_BETTER[data.task.metric],
        asked.margin,
        asked.significance,
        {family: tuple(s.description for s in variants) for family, variants in families.items()},
        limit,
        len(dev),
        len(test),
        digest.hexdigest(),
        detectable,
        assumed,
    )


def _detectable(metric: str, rows: int, alpha: float) -> tuple[float | None, str]:
    if metric in ("accuracy", "exact_match"):
        return statistics.detectable(rows, DISAGREEMENT, alpha), f"the arms disagree on {100 * DISAGREEMENT:.0f} % of them"
    if metric in SPREAD:
        return statistics.detectable_mean(rows, SPREAD[metric], alpha), f"a row's difference spreads by {SPREAD[metric]:g} (SD)"
    return None, ""
