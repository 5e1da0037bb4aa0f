"""Errors by field add up to the counts of the rows, and each comes with a row that shows it."""

from __future__ import annotations

import json
from typing import Any

from tunewright.core.records import FieldCounts, FieldExample
from tunewright.data.messages import Chat, Message
from tunewright.data.scores import Answer, Score, Written
from tunewright.data.task import detect_task
from tunewright.judge import field_errors

TARGETS = [
    {"id": 1, "items": [{"name": "pen", "price": 2}, {"name": "ink", "price": 3}]},
    {"id": 2, "items": [{"name": "cap", "price": 4}]},
]
ANSWERS = [
    {"id": 1, "items": [{"name": "ink", "price": 5}, {"name": "pen", "price": 2}]},
    {"id": 2, "items": [{"name": "cap", "price": 4}, {"name": "a@example.com", "price": 9}]},
]
ROWS = [Chat((Message("user", f"q{i}"), Message("assistant", json.dumps(t))), f"f:{i}") for i, t in enumerate(TARGETS)]
TASK = detect_task(ROWS)


def scores(answers: list[Any]) -> list[Score]:
    return [
        TASK.score(row, Answer(a if isinstance(a, str) else json.dumps(a), Written(1, False)))
        for row, a in zip(ROWS, answers, strict=True)
    ]


def test_errors_by_field() -> None:
    tuned, other = scores(ANSWERS), scores(["no", TARGETS[1]])
    fields = field_errors.by_field(TASK, ROWS, tuned, other)
    assert fields is not None
    assert [(f.path, f.tuned, f.comparator) for f in fields] == [
        ("items[].price", FieldCounts(2, 2, 1), FieldCounts(1, 0, 2)),
        ("items[].name", FieldCounts(3, 1, 0), FieldCounts(1, 0, 2)),
        ("id", FieldCounts(2, 0, 0), FieldCounts(1, 0, 1)),
    ]
    for arm, of in ((tuned, "tuned"), (other, "comparator")):
        total = [sum(column) for column in zip(*(getattr(f, of) for f in fields), strict=True)]
        counted = [s.readings.fields for s in arm if s.readings and s.readings.fields]
        assert total == [sum(getattr(c, part) for c in counted) for part in ("right", "wrong", "missed")]
    assert fields[0].example == FieldExample(where="f:0", expected="3", given="5")
    assert fields[1].example == FieldExample(where="f:1", expected="", given="[e-mail address]")
    assert fields[2].example is None
    assert field_errors.line(fields) == (
        "fields with the most errors: items[].price (2 wrong, 1 missed), items[].name (1 wrong, 0 missed)"
    )


def test_values_are_masked_before_they_are_cut() -> None:
    long = f"{'x' * 85} john.doe@example.com and more"
    tuned = scores([TARGETS[0], {"id": long, "items": []}])
    fields = field_errors.by_field(TASK, ROWS, tuned, tuned)
    assert fields is not None
    shown = next(f.example.given for f in fields if f.path == "id" and f.example)
    assert "john" not in shown
    assert len(shown) <= field_errors.SHOWN + 3


def test_no_errors_give_no_line_and_other_tasks_no_fields() -> None:
    right = scores(TARGETS)
    fields = field_errors.by_field(TASK, ROWS, right, right)
    assert fields is not None
    assert field_errors.line(fields) is None
    words = [Chat((Message("user", "q"), Message("assistant", f"some words {i}")), "x") for i in range(9)]
    assert field_errors.by_field(detect_task(words), words[:1], right[:1], right[:1]) is None


def test_answers_whose_keys_are_data_do_not_fill_the_record() -> None:
    rows = [Chat((Message("user", "q"), Message("assistant", json.dumps({f"k{i}": 1 for i in range(300)}))), "x")]
    task = detect_task(rows)
    wrong = [task.score(rows[0], Answer("{}", Written(1, False)))]
    fields = field_errors.by_field(task, rows, wrong, wrong)
    assert fields is not None
    assert len(fields) == field_errors.MOST
