"""Answers that are one number, judged by their distance from the target in standard deviations of the training answers.
Only for rows that `train.method=regress` reads: numbers of a few values are labels otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from tunewright.data import corpus_metrics, metrics, numbers
from tunewright.data.messages import Chat, Example
from tunewright.data.metrics import METRICS
from tunewright.data.numbers import Numbers
from tunewright.data.scores import Readings
from tunewright.data.task.kind import Task, TaskKind, one_answer


def targets(examples: Sequence[Example]) -> list[float]:
    """The answers of rows that are all numbers."""
    values = [numbers.exact(e.target) for e in examples]
    assert None not in values, "`dataset` has checked it"
    return [v for v in values if v is not None]


def _detect(examples: Sequence[Example]) -> Task | None:
    if not one_answer(examples) or any(numbers.exact(e.target) is None for e in examples):
        return None
    return Task(NUMBER, METRICS["absolute_error"], f"the answers of all {len(examples)} rows are numbers")


def _read(task: Task, example: Example, answer: str) -> Readings:
    (target,), known = targets([example]), task.numbers
    assert known is not None
    return Readings(
        metrics.exact_match(example.target, answer),
        metrics.strict_match(example.target, answer),
        error=abs(known.predicted(answer, target) - target) / known.deviation,
    )


def _instruct(task: Task, train: Sequence[Chat]) -> str:
    known = Numbers.of(targets(train))
    return f"Answer with one number from {known.low:g} to {known.high:g} and nothing else."


NUMBER = TaskKind(
    name="number",
    detect=_detect,
    read=_read,
    instruct=_instruct,
    corpus=corpus_metrics.RMSE,
    summary=("rmse", "spearman"),
)
