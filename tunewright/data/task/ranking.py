"""Pairs of given answers, of which one was chosen: judged by which of them has the higher score. Nothing is written."""

from __future__ import annotations

from collections.abc import Sequence

from tunewright.data import corpus_metrics
from tunewright.data.messages import Chat, Example
from tunewright.data.metrics import METRICS
from tunewright.data.task.kind import Task, TaskKind, nothing_is_written


def _detect(examples: Sequence[Example]) -> Task | None:
    if not all(isinstance(e, Chat) and e.rejected is not None for e in examples):
        return None
    return Task(RANKING, METRICS["pair_accuracy"], "two answers to a prompt, to be ranked")


RANKING = TaskKind(
    name="ranking",
    detect=_detect,
    read=nothing_is_written,
    instruct=nothing_is_written,
    corpus=corpus_metrics.DECIDED,
    summary=("decided",),
    prompted=False,
)
