"""Rated rows: read, audited and split, and no undesirable answer is taken for a right one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunewright.core import config
from tunewright.core.errors import DataError
from tunewright.data import dataset, formats
from tunewright.data.dataset import Dataset
from tunewright.data.formats import RowSettings
from tunewright.data.messages import Chat, is_reference, turns
from tunewright.data.sources import Row

RATED = RowSettings(rated=True)
COMPLETION = {"prompt": "q", "completion": "a"}


def read(row: dict[str, Any], how: RowSettings = RATED) -> Chat:
    (example,) = formats.parse([Row(row, "x:1")], how).examples
    assert isinstance(example, Chat)
    return example


@pytest.mark.parametrize(
    ("value", "rating"),
    [(True, True), (1, True), (1.0, True), ("true", True), (" True ", True), ("1", True), ("1.0", True),
     (False, False), (0, False), (0.0, False), ("false", False), ("FALSE", False), ("0", False)],
)  # fmt: skip
def test_a_rating_is_a_boolean_however_it_is_written(value: Any, rating: bool) -> None:
    assert read({**COMPLETION, "label": value}).desirable is rating


@pytest.mark.parametrize("value", [None, "", "good", "yes", 2, -1, 0.5, [True], {"x": 1}], ids=repr)
@pytest.mark.parametrize("field", ["label", "kto_tag"])
def test_any_other_value_is_an_error_with_its_place(value: Any, field: str) -> None:
    base = COMPLETION if field == "label" else {"instruction": "q", "output": "a"}
    rows = [Row({**base, field: True}, "x:1"), Row({**base, field: value}, "x:2")]
    with pytest.raises(DataError) as caught:
        formats.parse(rows, RATED)
    (problem,) = caught.value.problems
    assert (problem.code, problem.where) == ("DATA_LABEL_NOT_BOOLEAN", "x:2")
    assert "data.invalid=drop" in problem.fix


def test_only_the_rated_answer_is_trained_on() -> None:
    before = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]
    last = [{"role": "user", "content": "r"}, {"role": "assistant", "content": "a"}]
    for row in ({"messages": [*before, *last]}, {"prompt": [*before, last[0]], "completion": last[1:]}):
        chat = read({**row, "label": False})
        assert turns(chat.messages) == [3]
        assert (chat.target, chat.desirable) == ("a", False)


def test_a_label_of_a_text_or_of_a_question_stays_a_class() -> None:
    for row in ({"text": "q", "label": 1}, {"messages": [{"role": "user", "content": "q"}], "label": True}):
        assert formats.parse([Row(row, "x:1")]).format in ("label", "labelled_chat")
        assert read(row, RowSettings()).desirable is None


def test_pairs_are_read_for_ratings_too() -> None:
    chat = read({"prompt": "q", "chosen": "a", "rejected": "b"})
    assert chat.rejected is not None
    assert chat.desirable is None


def test_other_fields_can_be_named() -> None:
    row = {"question": "q", "reply": "a", "thumb": "0"}
    how = RowSettings(rated=True, columns={"prompt": "question", "completion": "reply", "label": "thumb"})
    assert read(row, how).desirable is False
    with pytest.raises(DataError, match=r"label: third_field"):
        read(row)


# -- data sets

WORDS = ["red", "green", "blue", "cat", "dog", "house", "tree", "seven", "river", "stone", "iron", "cloud", "north"]


def rows(count: int = 60) -> list[dict[str, Any]]:
    """A desirable answer in capitals and an undesirable one for every prompt."""
    made = []
    for i in range(count):
        prompt = f"number {i}: {WORDS[i % 13]} {WORDS[i * 7 % 13]} {WORDS[i * i % 11]}"
        answer = f"{WORDS[i % 13]} of {i}, as it is known here"
        made += [{"prompt": prompt, "completion": answer.upper(), "label": True},
                 {"prompt": prompt, "completion": answer, "label": False}]  # fmt: skip
    return made


def load(folder: Path, given: list[dict[str, Any]], *words: str) -> Dataset:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in given), encoding="utf-8")
    return dataset.load(config.load(None, ["train.method=kto", *words], data__train=str(file)))


def test_undesirable_answers_are_no_references_and_lie_on_the_side_of_their_prompt(tmp_path: Path) -> None:
    data = load(tmp_path, rows())
    assert {data.sides[i] for i in range(120)} == {"train", "dev", "test"}
    assert all(data.sides[i] == data.sides[i + 1] for i in range(0, 120, 2))
    for side in ("train", "dev", "test"):
        assert data.side(side) == [i for i in data.every(side) if i % 2 == 0]
        assert all(is_reference(data.examples[i]) for i in data.sample(None, side))
    assert data.audit.rows == 120
    (finding,) = (f for f in data.findings() if f.code == "RATINGS")
    assert finding.rows == tuple(range(1, 120, 2))
    assert "60 answers are desirable and 60 undesirable" in finding.message


def test_two_answers_to_a_prompt_do_not_contradict_each_other_but_two_ratings_do(tmp_path: Path) -> None:
    data = load(tmp_path, rows())
    assert "CONTRADICTIONS" not in {f.code for f in data.findings()}
    assert data.audit.ceiling == 1.0
    given = rows()
    again = [{**given[0], "label": False}, {**given[3], "label": True}]
    data = load(tmp_path, [*given, *again])
    (finding,) = (f for f in data.findings() if f.code == "CONTRADICTIONS")
    assert finding.groups == ((0, 120), (3, 121))
    two = load(tmp_path, [*given, {**given[0], "completion": "SOMETHING ELSE"}])
    assert two.audit.ceiling == pytest.approx(60 / 61), "of two desirable answers to a prompt, one can be given"
    assert "CONTRADICTIONS" not in {f.code for f in two.findings()}
    assert len(load(tmp_path, [*given, *again], "data.contradictions=drop").examples) == 118
    (finding,) = (f for f in load(tmp_path, [*given, given[1]]).findings() if f.code == "DUPLICATES")
    assert finding.groups == ((1, 120),)


def test_the_task_and_its_labels_are_those_of_desirable_answers(tmp_path: Path) -> None:
    given = rows()
    for i, row in enumerate(given):
        row["completion"] = ("warm" if i % 8 < 4 else "cold") if row["label"] else f"I do not know, {i}"
    data = load(tmp_path, given)
    assert set(data.task.labels) == {"warm", "cold"}
    assert set(data.audit.labels) == {"warm", "cold"}
    dropped = load(tmp_path, given, "data.unseen_labels=drop", "data.labels=merge")
    assert len(dropped.examples) == len(given)


@pytest.mark.parametrize(("kind", "other"), [(True, "undesirable"), (False, "desirable")])
def test_rows_of_one_kind_are_refused(tmp_path: Path, kind: bool, other: str) -> None:
    with pytest.raises(DataError, match=rf"DATA_ONE_SIDED.*add {other} answers") as caught:
        load(tmp_path, [r for r in rows() if r["label"] is kind])
    assert ("train.method=sft" in str(caught.value)) is kind


def test_a_test_side_needs_a_desirable_answer(tmp_path: Path) -> None:
    held_out = tmp_path / "test.jsonl"
    held_out.write_text(json.dumps({"prompt": "other", "completion": "x", "label": False}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="no test rows with a desirable answer"):
        load(tmp_path, rows(), f"data.test={held_out}")


def test_fine_tuning_takes_the_desirable_answers_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="DATA_FORM_UNSUPPORTED"):
        load(tmp_path, rows(), "train.method=sft")
    data = load(tmp_path, rows(), "train.method=sft", "data.format=rated_completion")
    assert len(data.examples) == 60
    assert all(e.target.isupper() and e.desirable is None for e in data.examples if isinstance(e, Chat))
    assert {c.setting for c in data.changes} == {"data.format=rated_completion"}
    assert len(data.changes) == 60
