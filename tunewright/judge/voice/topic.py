"""Whether the tuned model finds a reference answer likelier after its own question than after another one. No torch.

A model that was trained on answers to other questions learns how they are written, and nothing about the questions; by
reference bits, and often by chrF, it beats every prompt. So each reference answer is also read after the question of
another test row: what it costs more there, in bits per byte, it owes to its own question. A verdict of BETTER needs
more than chance there.

Axes: R test rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunewright.core.records import TopicContrast
from tunewright.core.records.common import Interval
from tunewright.data.messages import Prompt
from tunewright.data.metrics import METRICS
from tunewright.judge.statistics import clustered_interval

ALPHA = 0.002  # a verdict that a false alarm could make must be rare: 1 in 1,000 if answers don't depend on questions
MIN_ROWS = 10


def partners(prompts: Sequence[Prompt], clusters: Sequence[int]) -> list[int | None]:
    """For each row, the next row (around the end) of another cluster with another prompt; None if there is none."""
    count = len(prompts)

    def partner(i: int) -> int | None:
        others = ((i + step) % count for step in range(1, count))
        return next((j for j in others if clusters[j] != clusters[i] and prompts[j] != prompts[i]), None)

    return [partner(i) for i in range(count)]


def topic(own_R: Sequence[float], other_R: Sequence[float], clusters: Sequence[int]) -> TopicContrast | None:
    """``own_R``, ``other_R``: bits per byte after the row's own question, and after its partner's. None for fewer than
    `MIN_ROWS` rows: where most rows have the same prompt, an answer cannot depend on it."""
    if len(own_R) < MIN_ROWS:
        return None
    gap_R = np.subtract(other_R, own_R)
    low, high, _ = clustered_interval(gap_R, clusters, ALPHA, METRICS["reference_bits"].bound)
    return TopicContrast(rows=len(gap_R), difference=float(gap_R.mean()), interval=Interval(low, high))
