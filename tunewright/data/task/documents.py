"""Documents: rows without answers, judged by the likelihood of their text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunewright.data import corpus_metrics
from tunewright.data.messages import Example, Text
from tunewright.data.metrics import METRICS
from tunewright.data.task.kind import Task, TaskKind


def _detect(examples: Sequence[Example]) -> Task | None:
    if not isinstance(examples[0], Text):
        return None
    reason = "raw text: bits per byte of held-out documents"
    return Task(TEXT, METRICS["bits_per_byte"], reason)


def _no_answer(*_: Any) -> Any:
    raise AssertionError("documents have no answers")


TEXT = TaskKind(
    name="text",
    detect=_detect,
    read=_no_answer,
    instruct=_no_answer,
    corpus=corpus_metrics.CORPUS_BITS,
    summary=("corpus_bits_per_byte",),
    prompted=False,
)
