"""Labels that differ only in how they are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.data.messages import Chat, Message, Text
from tunewright.data.remedies import labels
from tunewright.data.text import normalised


def rows(*targets: str) -> tuple[Chat, ...]:
    return tuple(
        Chat((Message("user", f"question {i}"), Message("assistant", t)), f"a:{i + 1}") for i, t in enumerate(targets)
    )


SAME = [
    ("Positive", "positive", "POSITIVE ", "positive.", "'positive'", "Positive!"),
    ("not urgent", "Not-Urgent", "not_urgent", "NOT  URGENT", "not/urgent"),
    ("class 1", "Class-1", "class_1"),
    ("24/7", "24/7."),
]
DIFFERENT = [
    "c",
    "c++",
    "c#",
    "1",
    "-1",
    "+1",
    "1.5",
    "15",
    "1-5",
    "+",
    "-",
    "👍",
    "👎",
    "<",
    ">",
    "a",
    "ä",
    "yes",
    "no",
    "m2",
    "m²",
]


@pytest.mark.parametrize("spellings", SAME)
def test_ways_of_writing_one_label(spellings: tuple[str, ...]) -> None:
    assert len({labels.key(s) for s in spellings}) == 1


def test_labels_that_mean_something_else_stay_apart() -> None:
    assert len({labels.key(label) for label in DIFFERENT}) == len(DIFFERENT)


@given(st.text(min_size=1).filter(str.strip))
def test_a_key_is_never_empty_and_ignores_case(label: str) -> None:
    assert labels.key(label)
    assert labels.key(labels.key(label)) == labels.key(normalised(labels.key(label)))


def test_the_most_frequent_spelling_in_train_wins_on_all_sides() -> None:
    train = rows(*["Yes", "no", "yes ", "No.", "Yes", "no"] * 5)
    sides = {"train": train, "test": rows("YES", "No", "maybe")}
    merged, changes = labels.merge(sides)  # type: ignore[arg-type]
    assert {e.target for e in merged["train"]} == {"Yes", "no"}
    assert [e.target for e in merged["test"]] == ["Yes", "no", "maybe"]
    assert len(changes) == 12
    assert not any(c.dropped for c in changes)
    assert "'yes ' is read as 'Yes'" in changes[0].message
    again, none = labels.merge(merged)
    assert (again, none) == (merged, [])


def test_other_tasks_are_left_alone() -> None:
    sentences = rows(*(f"The answer to question {i} is {i * 7919}, as everybody knows." for i in range(30)))
    documents = tuple(Text(f"document {i}", f"a:{i}") for i in range(30))
    for examples in (sentences, documents):
        assert labels.merge({"train": examples}) == ({"train": examples}, [])
        assert labels.drop_unseen({"train": examples, "test": examples[:2]})[1] == []


def test_rows_with_a_label_that_no_training_row_has() -> None:
    sides = {"train": rows(*["yes", "no"] * 10), "dev": rows("no"), "test": rows("maybe", "yes", "never")}
    kept, changes = labels.drop_unseen(sides)  # type: ignore[arg-type]
    assert {side: [e.target for e in examples] for side, examples in kept.items() if side != "train"} == {
        "dev": ["no"],
        "test": ["yes"],
    }
    assert kept["train"] == sides["train"]
    assert [(c.where, c.dropped) for c in changes] == [("a:1", True), ("a:3", True)]
