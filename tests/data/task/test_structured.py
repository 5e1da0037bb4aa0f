"""Structured answers: read in any wrapping, without their thoughts; validity is separate from being right."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from tunewright.data.corpus_metrics import FIELD_MICRO_F1
from tunewright.data.messages import Chat, Message
from tunewright.data.scores import Answer, Readings, Score, Written
from tunewright.data.structure.comparison import Rules
from tunewright.data.structure.schema import Schema
from tunewright.data.task import JSON, Task, detect_task
from tunewright.data.text import without_thoughts


def row(target: str) -> Chat:
    return Chat((Message("user", "q"), Message("assistant", target)), "x")


def scored(target: Any, answer: str, **changed: Any) -> Score:
    text = target if isinstance(target, str) else json.dumps(target)
    task = dataclasses.replace(detect_task([row('{"a": 1}')]), **changed)
    assert task.kind is JSON
    return task.score(row(text), Answer(answer, Written(1, False)))


def readings(target: Any, answer: str, **changed: Any) -> Readings:
    actual = scored(target, answer, **changed).readings
    assert actual is not None
    return actual


PEOPLE = [{"name": "Ann", "type": "X"}, {"name": "Bob", "type": "Y"}]
TEXT = json.dumps(PEOPLE)


@pytest.mark.parametrize(
    ("answer", "f1", "valid"),
    [
        (TEXT, 1.0, True),
        (json.dumps(PEOPLE[::-1], indent=1), 1.0, True),
        (f"```json\n{TEXT}\n```", 1.0, False),
        (f"Here they are: {TEXT}. Enjoy!", 1.0, False),
        (f'{{"people": {TEXT}}}', 0.0, False),
        ("\n".join(json.dumps(p) for p in PEOPLE), 1.0, False),
        (json.dumps(PEOPLE[0]), 2 / 3, False),
        (TEXT[:-1], 0.0, False),
        ('[{"name": "Ann", "type": "Y"}, {"name": "Bob", "type": "X"}]', 0.5, True),
        ("[]", 0.0, True),
        ("", 0.0, False),
        ("There are none.", 0.0, False),
    ],
)
def test_oracles_of_arrays(answer: str, f1: float, valid: bool) -> None:
    actual = scored(PEOPLE, answer)
    assert actual.score == pytest.approx(f1)
    assert actual.readings is not None
    assert actual.readings.valid == valid
    assert actual.readings.exact_match == float(f1 == 1.0)
    assert actual.readings.strict_match == float(f1 == 1.0 and valid)


def test_an_empty_array_is_answered_only_by_an_empty_array() -> None:
    assert scored([], "[]").score == 1.0
    assert scored([], "```\n[]\n```").score == 1.0
    for wrong in ("There are none.", "", "{}", "null", TEXT):
        assert scored([], wrong).score == 0.0, wrong


def test_a_refused_row_is_compared_as_text() -> None:
    assert scored("I cannot say.", "I cannot say").score == 1.0
    assert scored("I cannot say.", '{"a": 1}').score == 0.0
    assert scored("I cannot say.", "").score == 0.0


def test_where_targets_are_fenced_answers_may_be() -> None:
    fenced = "```json\n[1, 2]\n```"
    assert readings(fenced, fenced).valid
    assert readings(fenced, "[2, 1]").valid
    assert readings(fenced, "[2, 1]").exact_match == 1.0
    assert not readings("[1, 2]", fenced).valid


def test_order_and_tolerance_are_declared() -> None:
    assert scored([1, 2], "[2, 1]").score == 1.0
    assert scored([1, 2], "[2, 1]", rules=Rules(ordered=True)).score == 0.5
    assert scored({"a": 100}, '{"a": 101}').score == 0.0
    assert scored({"a": 100}, '{"a": 101}', rules=Rules(tolerance=0.01)).score == 1.0
    assert readings({"a": 100}, '{"a": 101}', rules=Rules(tolerance=0.01)).strict_match == 1.0


def test_a_number_and_its_text_differ_only_by_the_schema() -> None:
    schema = Schema("s", {"type": "object", "properties": {"a": {"type": "integer"}}})
    for answer, satisfied in (('{"a": 1}', True), ('{"a": 1.0}', True), ('{"a": "1"}', False), ('x {"a": 1}', False)):
        actual = readings({"a": 1}, answer, schema=schema)
        assert actual.exact_match == 1.0
        assert actual.schema_valid == satisfied
    assert readings({"a": 1}, '{"a": 1}').schema_valid is None


# -- thoughts


@pytest.mark.parametrize(
    ("answer", "rest"),
    [
        ('<think>{"a": 2}</think>{"a": 1}', '{"a": 1}'),
        ('\n<think>\nIs it {"a": 2}?\n</think>\n\n{"a": 1}', '{"a": 1}'),
        ('is it {"a": 2}?</think>{"a": 1}', '{"a": 1}'),
        ('<think>is it {"a": 1}', ""),
        ('{"a": 1}', '{"a": 1}'),
        ("I <think> so", "I <think> so"),
        ("", ""),
    ],
)
def test_thoughts_are_not_part_of_the_answer(answer: str, rest: str) -> None:
    assert without_thoughts(answer) == rest
    assert scored({"a": 1}, answer).score == float(rest == '{"a": 1}')
    assert scored({"a": 1}, answer).answer.text == answer, "as it was written"


def test_thoughts_of_the_target_are_not_judged_either() -> None:
    target = "<think>two</think> some free words"
    task = detect_task([row("some free words that are long")])
    for answer in (target, "some free words", "<think>three or four</think>some free words"):
        assert task.score(row(target), Answer(answer, Written(1, False))).score == pytest.approx(1.0)


def test_corpus_metrics_leave_thoughts_out() -> None:
    rows = [row(f"some long answer in words, the number {i}") for i in range(9)]
    task = detect_task(rows)
    plain, thinking = (
        [task.score(r, Answer(before + r.target, Written(1, False))) for r in rows]
        for before in ("", "<think>well, well</think>\n")
    )
    assert task.summary(plain) == task.summary(thinking)


# -- the corpus metric


def test_micro_f1_of_flat_objects_is_that_of_sklearn() -> None:
    """Each (key, value) as a label."""
    rng = np.random.default_rng(0)
    objects = [[{k: int(rng.integers(3)) for k in "abcd" if rng.random() < 0.7} for _ in range(30)] for _ in range(2)]
    task, pairs = Task(JSON, detect_task([row("{}")]).metric, ""), [(k, v) for k in "abcd" for v in range(3)]
    kept = [(t, a) for t, a in zip(*objects, strict=True) if t]
    scores = [task.score(row(json.dumps(t)), Answer(json.dumps(a), Written(1, False))) for t, a in kept]
    targets, answers = ([[x[side].get(k) == v for k, v in pairs] for x in kept] for side in (0, 1))
    assert FIELD_MICRO_F1.of(scores, ()) == pytest.approx(f1_score(targets, answers, average="micro"))
