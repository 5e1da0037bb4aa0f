"""Labels of every type are answers in words."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
        ([0], "0", "no"),
        (["b", "a"], "a, b", "a, b"),
        (["yes", "no", "Also"], "Also, no, yes", "no, yes, Also"),
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


@given(st.lists(st.sampled_from("abcdE"), unique=True), st.randoms())
def test_several_labels_are_one_answer_in_whatever_order(labels: list[str], random: Random) -> None:
    turned = random.sample(labels, len(labels))
    assert answer(labels) == answer(turned)
    assert answer(labels, ["d", "a"]) == answer(turned, ["d", "a"])


def choice(answer: Any, choices: list[str], field: str = "answer") -> str:
    (row,) = formats.parse([Row({"question": "q", "choices": choices, field: answer}, "x:1")]).examples
    return row.target


@pytest.mark.parametrize("field", ["answer", "solution"])
@pytest.mark.parametrize("given", [1, 1.0, "1", "B", "b", "(b)", "B.", "B)", "blue", " BLUE "], ids=str)
def test_the_answer_of_a_choice_is_one_that_the_prompt_shows(given: Any, field: str) -> None:
    assert choice(given, ["red", "blue"], field) == "blue"


def test_a_choice_that_is_a_letter_a_number_or_a_truth_value() -> None:
    assert choice("a", ["b", "a"]) == "a"
    assert choice("1", ["2", "1"]) == "1"
    assert choice(True, ["true", "false"]) == "true"
    assert choice("a reason", ["red", "blue"], "explanation") == "a reason"


@pytest.mark.parametrize("given", [2, -1, "2", "C", "green", "red or blue", True, 0.5], ids=str)
def test_an_answer_that_is_none_of_the_choices(given: Any) -> None:
    with pytest.raises(DataError) as caught:
        choice(given, ["red", "blue"])
    assert caught.value.code == ("DATA_FIELD_TYPE" if given == 0.5 else "DATA_LABEL")
    assert "label_names" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "code"),
    [(["Tim Cook", "Timothy Cook"], "DATA_FIELD_TYPE"), (["one"], "DATA_FIELD_TYPE"), ([], "DATA_EMPTY_TARGET")],
)
def test_several_answers_to_a_question_are_not_joined(given: list[str], code: str) -> None:
    with pytest.raises(DataError) as caught:
        formats.parse([Row({"question": "Who runs Apple?", "answer": given}, "x:1")])
    assert caught.value.code == code
    assert formats.parse([Row({"question": "q", "answer": True}, "x:1")]).examples[0].target == "true"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1, 0, 0], "red"),
        ([1.0, 0.0, 1.0], "red, blue"),
        ([True, True, False], "red, green"),
        ([0, 0, 0], "none"),
        ([0, 1], "red, green"),
        ([2, 0], "red, blue"),
        ([0, 1, 2], "red, green, blue"),
    ],
    ids=str,
)
def test_a_list_with_a_0_or_a_1_for_each_name(value: Any, expected: str) -> None:
    assert answer(value, ["red", "green", "blue"]) == expected


@pytest.mark.parametrize(
    "value", [[1, 0, 0], ["red", "red"], ["red, green", "blue"], ["red", ["blue"]], [[1], [1]]], ids=str
)
def test_labels_that_could_not_be_distinguished(value: Any) -> None:
    with pytest.raises(DataError) as caught:
        answer(value)
    assert caught.value.code == "DATA_LABEL"
    assert ("label_names" in str(caught.value)) == (value == [1, 0, 0])


def test_one_of_two_or_both() -> None:
    with pytest.raises(DataError, match="one label of two, or both"):
        answer([1, 0], NAMES)
    assert answer([1, 1], NAMES) == "no, yes"
    assert answer([0, 0], NAMES) == "none"
