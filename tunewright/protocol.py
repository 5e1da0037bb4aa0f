"""What will be asked of the test rows, written down and hashed before training. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tunewright import statistics
from tunewright.config import ProveConfig
from tunewright.dataset import Dataset
from tunewright.examples import content_hash, question
from tunewright.metrics import HIGHER_IS_BETTER
from tunewright.systems import System

RULE = (
    "dev chooses one variant of every family of arms, and the best untrained arm as comparator; every chosen arm answers test "
    "once; the verdict is tuned against the comparator; all other comparisons are exploratory and adjusted by Holm"
)


@dataclass(frozen=True)
class Protocol:
    """``arms``: family -> what its variants are. ``detectable``: the difference that the test rows find with power 0.8 when the
    arms disagree on 30 % of them (right/wrong scores only)."""

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

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def make(
    data: Dataset, asked: ProveConfig, families: dict[str, list[System]], dev: Sequence[int], test: Sequence[int], limit: int
) -> Protocol:
    digest = hashlib.sha256()
    for side, rows in (("dev", dev), ("test", test)):
        for i in rows:
            digest.update(f"{side} {content_hash(question(data.examples[i]))}\n".encode())
    right_or_wrong = data.task.metric in ("accuracy", "exact_match")
    return Protocol(
        RULE,
        data.task.metric,
        HIGHER_IS_BETTER[data.task.metric],
        asked.margin,
        asked.alpha,
        {family: tuple(s.description for s in variants) for family, variants in families.items()},
        limit,
        len(dev),
        len(test),
        digest.hexdigest(),
        statistics.detectable(len(test), alpha=asked.alpha) if right_or_wrong else None,
    )
