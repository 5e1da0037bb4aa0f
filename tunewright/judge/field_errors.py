"""Errors of structured answers by field: how often each field is right, wrong or missed, with an example. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tunewright.core.pii import masked
from tunewright.core.records import FieldCounts, FieldErrors, FieldExample
from tunewright.data.messages import Example
from tunewright.data.scores import Score
from tunewright.data.structure.comparison import Comparison, Field, scalar_text
from tunewright.data.task import Task

MOST = 100  # fields; answers whose keys are data may have any number
SHOWN = 100  # characters of a value
NONE = FieldCounts(0, 0, 0)


def by_field(
    task: Task, examples: Sequence[Example], tuned: Sequence[Score], comparator: Sequence[Score]
) -> tuple[FieldErrors, ...] | None:
    """For every field, the counts of both arms over the same rows, and a row in which the tuned arm is wrong: the
    fields with the most errors first. None for tasks without fields."""
    if task.kind.compare is None:
        return None
    first, second = (
        [task.compare(example, s.answer) for example, s in zip(examples, scores, strict=True)]
        for scores in (tuned, comparator)
    )
    of_tuned, of_comparator = _counts(first), _counts(second)
    paths = sorted({*of_tuned, *of_comparator}, key=lambda path: (-_errors(of_tuned.get(path, NONE)), path))
    return tuple(
        FieldErrors(
            path=path,
            tuned=of_tuned.get(path, NONE),
            comparator=of_comparator.get(path, NONE),
            example=_example(path, first, tuned),
        )
        for path in paths[:MOST]
    )


def line(fields: Sequence[FieldErrors], most: int = 3) -> str | None:
    """The fields in which the tuned arm errs most, in one line; None if it errs in none."""
    parts = [f"{f.path} ({f.tuned.wrong} wrong, {f.tuned.missed} missed)" for f in fields if _errors(f.tuned)]
    return f"fields with the most errors: {', '.join(parts[:most])}" if parts else None


def _counts(compared: Sequence[Comparison]) -> dict[str, FieldCounts]:
    counts: Counter[tuple[str, int]] = Counter()
    for c in compared:
        for column, fields in enumerate((c.right, c.wrong, c.missed)):
            counts.update((path, column) for path, _ in fields)
    return {path: FieldCounts(*(counts[path, column] for column in range(3))) for path, _ in counts}


def _errors(counts: FieldCounts) -> int:
    return counts.wrong + counts.missed


def _example(path: str, compared: Sequence[Comparison], scores: Sequence[Score]) -> FieldExample | None:
    """The values that are missed and wrong in the first row with an error in this field, masked where private."""
    for c, score in zip(compared, scores, strict=True):
        expected, given = _values(path, c.missed), _values(path, c.wrong)
        if expected or given:
            return FieldExample(where=score.where, expected=", ".join(expected), given=", ".join(given))
    return None


def _values(path: str, fields: Sequence[Field]) -> list[str]:
    values = [masked(v if isinstance(v, str) else scalar_text(v)) for p, v in fields if p == path][:5]
    return [v if len(v) <= SHOWN else f"{v[:SHOWN]}..." for v in values]
