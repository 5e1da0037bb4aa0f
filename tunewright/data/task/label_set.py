"""Answers that are sets of labels, as rows with a list of labels have them. Only for `train.method=multilabel`: every
combination is a label of its own otherwise."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tunewright.data import corpus_metrics, metrics
from tunewright.data.formats.labelled import NO_LABEL
from tunewright.data.messages import Chat, Example
from tunewright.data.metrics import METRICS
from tunewright.data.scores import Readings
from tunewright.data.structure.comparison import FieldCounts
from tunewright.data.task.free_text import LABEL_WORDS, MAX_LABELS
from tunewright.data.task.kind import Task, TaskKind, one_answer


def parts(answer: str) -> tuple[str, ...]:
    """The labels of a row's answer."""
    return () if answer == NO_LABEL else tuple(answer.split(", "))


def joined(labels: Sequence[str]) -> str:
    """The answer for these labels."""
    return ", ".join(labels) or NO_LABEL


def _detect(examples: Sequence[Example]) -> Task | None:
    labels = tuple(sorted({label for e in examples for label in parts(e.target)}))
    few = 0 < len(labels) <= MAX_LABELS
    if not (few and one_answer(examples)) or max(len(label.split()) for label in labels) > LABEL_WORDS:
        return None
    reason = f"sets of {len(labels)} labels in {len(examples)} rows"
    return Task(LABEL_SET, METRICS["label_f1"], reason, label_set=labels)


def _read(task: Task, example: Example, answer: str) -> Readings:
    known = {metrics.strip_wrapping(label): label for label in task.label_set}
    named = [metrics.strip_wrapping(part) for part in re.split("[,;\n]", answer)]
    given = {known.get(part, part) for part in named if part not in ("", NO_LABEL)}
    target = set(parts(example.target))
    return Readings(
        exact_match=float(given == target),
        strict_match=metrics.strict_match(example.target, answer),
        fields=FieldCounts(right=len(given & target), wrong=len(given - target), missed=len(target - given)),
    )


def _instruct(task: Task, train: Sequence[Chat]) -> str:
    labels = ", ".join(task.label_set)
    return f"Answer with those of these labels that apply, separated by commas, or with {NO_LABEL}: {labels}."


LABEL_SET = TaskKind(
    name="label_set",
    detect=_detect,
    read=_read,
    instruct=_instruct,
    corpus=corpus_metrics.LABEL_MICRO_F1,
    summary=("exact_match", "label_micro_f1"),
)
