"""Labels of every type are answers in words."""

from __future__ import annotations

from typing import Any

import pytest

from tunewright.core.errors import DataError
from tunewright.data import formats
from tunewright.data.formats import RowSettings
from tunewright.data.sources import Row

NAMES = ["no", "yes"]


def answer(value: Any, names: list[str] | None = None) -> str:
    parsed = formats.parse([Row({"text": "q", "label": value}, "x:1")], RowSettings(label_names=names or []))
    return parsed.examples[0].target


@pytest.mark.parametrize(
    ("value", "plain", "named"),
    [
        (0, "0", "no"),
        (1, "1", "yes"),
        (1.0, "1", "yes"),
        (True, "true", "yes"),
        (False, "false", "no"),
        ("1", "1", "yes"),  # from CSV
        ("False", "False", "no"),
        ("maybe", "maybe", "maybe"),
        ([], "none", "none"),
        ([1, 0], "1, 0", "yes, no"),
        (["a", "b"], "a, b", "a, b"),
    ],
    ids=str,
)
def test_a_label_is_an_answer(value: Any, plain: str, named: str) -> None:
    assert answer(value) == plain
    assert answer(value, NAMES) == named


@pytest.mark.parametrize(
    ("value", "code"),
    [(2, "DATA_LABEL"), (-1, "DATA_LABEL"), (0.5, "DATA_LABEL"), ("", "DATA_EMPTY_TARGET"), ({}, "DATA_FIELD_TYPE")],
    ids=str,
)
def test_a_label_that_is_none(value: Any, code: str) -> None:
    with pytest.raises(DataError) as caught:
        answer(value, NAMES)
    assert caught.value.code == code
    assert caught.value.problems[0].fix


def test_true_and_false_are_not_names_0_and_1_of_many() -> None:
    assert answer(True, ["a", "b", "c"]) == "true"


@pytest.mark.parametrize(("label", "expected"), [(1, "b"), ("b", "b")])
def test_the_answer_of_a_choice_is_its_place_or_its_text(label: Any, expected: str) -> None:
    (row,) = formats.parse([Row({"question": "q", "choices": ["a", "b"], "answer": label}, "x:1")]).examples
    assert row.target == expected
