"""Metrics of one answer: a right answer scores in any wrapping, an evasive one never does."""

from __future__ import annotations

import json

import pytest

from tunewright.core.config import load
from tunewright.core.errors import TunewrightError
from tunewright.data import metrics
from tunewright.data.formats import FORMATS
from tunewright.data.messages import Chat, Message
from tunewright.data.metrics import METRICS
from tunewright.data.scores import Answer, Score, Written
from tunewright.data.task import GENERATION, JSON, Task


def scored(metric: str, target: str, answer: str) -> Score:
    task = Task(JSON if target.startswith("{") else GENERATION, METRICS[metric], "")
    row = Chat((Message("user", "q"), Message("assistant", target)), "x")
    return task.score(row, Answer(answer, Written(1, False)))


def score(metric: str, target: str, answer: str) -> float:
    return scored(metric, target, answer).score


def test_a_label_is_read_out_of_a_sentence() -> None:
    labels = ("spam", "not spam", "offer")
    assert metrics.read_label("It is an Offer!", labels) == "offer"
    assert metrics.read_label("This is not spam.", labels) == "not spam"
    assert metrics.read_label("spam or offer", labels) is None
    assert metrics.read_label("offering", labels) is None
    assert metrics.read_label("It is in m².", ("m2", "m²")) == "m²"
    assert metrics.read_label("", labels) is None


PARIS = [
    "Paris",
    " paris ",
    "**Paris**",
    '"Paris".',
    "The answer is Paris.",
    "Answer: Paris",
    "$\\boxed{Paris}$",
    "```\nParis\n```",
]


OBJECT = '{"city": "Paris", "rivers": ["Seine", "Marne"]}'


OBJECTS = [
    OBJECT,
    '{"rivers": ["Marne", "Seine"], "city": "PARIS"}',
    f"```json\n{OBJECT}\n```",
    f"Here it is:\n{OBJECT}\nI hope this helps!",
]


@pytest.mark.parametrize("answer", PARIS)
def test_a_right_answer_is_right_however_it_is_wrapped(answer: str) -> None:
    assert score("exact_match", "Paris", answer) == 1.0


@pytest.mark.parametrize(("target", "wrong"), [("5²", "52"), ("10⁻³ m", "10-3 m"), ("25 m²", "25 m2"), ("xⁿ", "xn")])
def test_an_answer_without_its_power_is_another_one(target: str, wrong: str) -> None:
    written = target.replace("²", "^2").replace("⁻³", "^-3").replace("ⁿ", "^n")
    for right in (target, written, target.replace("m²", "㎡"), target.replace("m", "ｍ")):
        assert metrics.exact_match(target, right) == metrics.strict_match(target, right) == 1.0
        assert score("field_f1", json.dumps({"a": target}), json.dumps({"a": right})) == 1.0
    assert metrics.exact_match(target, wrong) == metrics.strict_match(target, wrong) == 0.0
    assert score("field_f1", json.dumps({"a": target}), json.dumps({"a": wrong})) == 0.0


@pytest.mark.parametrize("answer", OBJECTS)
def test_a_right_object_is_right_however_it_is_wrapped(answer: str) -> None:
    assert score("field_f1", OBJECT, answer) == 1.0
    assert score("exact_match", OBJECT, answer) == 1.0
    assert metrics.strict_match(OBJECT, answer) == float(answer.startswith("{"))


@pytest.mark.parametrize(
    ("metric", "target"),
    [("exact_match", "Paris"), ("exact_match", OBJECT), ("field_f1", OBJECT), ("chrf", "It is Paris on the Seine.")],
)
def test_silence_refusal_and_echo_score_about_nothing(metric: str, target: str) -> None:
    for lazy in ("", "I'm sorry, but I can't help with that.", "Which city lies there?", "{}", "null"):
        assert score(metric, target, lazy) < 0.2, lazy


GOLD = '{"a": "x", "b": {"c": [1, 2]}}'


@pytest.mark.parametrize(
    ("answer", "f1", "valid"),
    [
        (GOLD, 1.0, True),
        ('{"b": {"c": [2, 1]}, "a": "X "}', 1.0, True),
        (f"Sure! ```json\n{GOLD}\n```", 1.0, False),
        ("", 0.0, False),
        ("I cannot help with that.", 0.0, False),
        ("Extract the parts as one JSON object.", 0.0, False),
        ('{"a": "x", "b":', 0.0, False),
        ("[1, 2]", 0.0, False),
        ('{"a": "y"}', 0.0, True),
        ('{"a": "x"}', 0.5, True),
        ('{"a": "x", "z": "q"}', 0.4, True),
    ],
)
def test_oracles_of_the_field_score(answer: str, f1: float, valid: bool) -> None:
    """A right answer scores 1 in any wrapping; empty, refusing, echoing and cut ones score 0; validity is separate."""
    actual = scored("field_f1", GOLD, answer)
    assert actual.score == pytest.approx(f1)
    assert actual.readings is not None
    assert actual.readings.valid == valid


def test_oracles_of_the_text_scores() -> None:
    assert score("exact_match", "Paris", " paris\n") == 1.0
    assert score("exact_match", "B", "Berlin") == 0.0
    assert score("chrf", "The same text.", "The same text.") == pytest.approx(1.0)
    assert score("chrf", "The same text.", "") == 0.0
    assert metrics.bits_per_byte(8 * 0.6931471805599453, 4) == pytest.approx(2.0)


@pytest.mark.parametrize("setting", ["prove.metric", "data.format"])
def test_a_setting_that_names_a_table_takes_its_entries_and_nothing_else(setting: str) -> None:
    names = {"prove.metric": [m.name for m in METRICS.values() if m.tasks], "data.format": [f.name for f in FORMATS]}
    key = setting.replace(".", "__")
    for name in ["auto", *names[setting]]:
        load(None, **{key: name})
    with pytest.raises(TunewrightError, match=rf"CONFIG_RANGE.*{setting} is 'strict_match'; allowed: auto \| "):
        load(None, **{key: "strict_match"})
