"""Documents: rows without answers, judged by the likelihood of their text."""

from __future__ import annotations

from collections.abc import Sequence

from tunewright.data import corpus_metrics
from tunewright.data.messages import Example, Text
from tunewright.data.metrics import METRICS
from tunewright.data.task.kind import Task, TaskKind, nothing_is_written


def _detect(examples: Sequence[Example]) -> Task | None:
    if not isinstance(examples[0], Text):
        return None
    reason = "raw text: bits per byte of held-out documents"
    return Task(TEXT, METRICS["bits_per_byte"], reason)


TEXT = TaskKind(
    name="text",
    detect=_detect,
    read=nothing_is_written,
    instruct=nothing_is_written,
    corpus=corpus_metrics.CORPUS_BITS,
    summary=("corpus_bits_per_byte",),
    prompted=False,
)
