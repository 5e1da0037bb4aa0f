"""How likely each arm finds the reference answers: a proper score that needs neither decoding nor a judge. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tunewright.data.metrics import METRICS
from tunewright.data.scores import Score
from tunewright.judge import statistics
from tunewright.judge.statistics import Comparison

METRIC = METRICS["reference_bits"]


@dataclass(frozen=True)
class ReferenceBits:
    """Bits per byte of the reference answers after an arm's prompts: the mean over rows. ``contrast``: tuned minus this
    arm, positive if tuned finds them likelier; None for the tuned arm itself."""

    bits: float
    contrast: Comparison | None


def compare(
    scores_of: Mapping[str, Sequence[Score]], clusters: Sequence[int], alpha: float
) -> dict[str, ReferenceBits]:
    """The arms whose likelihoods are known, by family. Empty if the tuned arm is not among them."""
    bits = {family: b for family, scores in scores_of.items() if (b := _bits(scores)) is not None}
    if "tuned" not in bits:
        return {}

    def contrast(family: str) -> Comparison | None:
        if family == "tuned":
            return None
        return statistics.compare(
            bits["tuned"], bits[family], clusters, alpha=alpha, higher_is_better=False, bound=METRIC.bound
        )

    return {family: ReferenceBits(float(np.mean(b)), contrast(family)) for family, b in bits.items()}


def _bits(scores: Sequence[Score]) -> list[float] | None:
    read = [s.readings.reference_bits for s in scores if s.readings is not None]
    known = [b for b in read if b is not None]
    return known if len(known) == len(scores) else None
