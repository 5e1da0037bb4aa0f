"""Tasks are recognised from the rows; each kind has its own metric, summary and instruction. Prose is only prose."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunewright.data.messages import Chat, Message, Text, ToolCall
from tunewright.data.scores import Answer, Likelihood, Written
from tunewright.data.structure import csv_lines, xml_notation, yaml_notation
from tunewright.data.task import KINDS, Task, detect_task


def chats(*targets: str) -> list[Chat]:
    return [Chat((Message("user", f"q{i}"), Message("assistant", t)), "x") for i, t in enumerate(targets)]


def calling(*calls: ToolCall) -> Chat:
    return Chat((Message("user", "q"), Message("assistant", "", calls)), "x")


def detected(*targets: str) -> tuple[str, str]:
    task = detect_task(chats(*targets))
    return task.kind.name, task.metric.name


ANN = {"name": "Ann", "age": 3, "tags": ["a", "b"], "home": {"city": "Oslo", "zip": "0150"}}
YAML = "name: Ann\nage: {}\nhome:\n  city: Oslo\n"
XML = "<order id='{}'><item><name>pen</name><price>2</price></item></order>"


@pytest.mark.parametrize(
    ("targets", "kind", "metric"),
    [
        (["yes", "no"] * 20, "label", "accuracy"),
        ([json.dumps({"a": i}) for i in range(20)], "json", "field_f1"),
        ([json.dumps({**ANN, "age": i}, indent=1) for i in range(20)], "json", "field_f1"),
        ([json.dumps([{"name": "Ann", "type": "X"}] * (i % 3)) for i in range(20)], "json", "field_f1"),
        ([json.dumps([f"Ann{i}", "Bob"]) for i in range(20)], "json", "field_f1"),
        (["[]", '["a"]'] * 10, "json", "field_f1"),
        ([f"```json\n{json.dumps({'a': i})}\n```" for i in range(20)], "json", "field_f1"),
        ([f"```\n[{i}]\n```" for i in range(20)], "json", "field_f1"),
        ([str(i) for i in range(20)], "generation", "exact_match"),
        ([json.dumps(f"a{i}") for i in range(20)], "generation", "exact_match"),
        ([f"word{i}" for i in range(20)], "generation", "exact_match"),
        ([f"a long answer with number {i} in many words" for i in range(20)], "generation", "chrf"),
        ([f"- buy {i} apples\n- sell {i} pears" for i in range(20)], "generation", "chrf"),
        ([YAML.format(i) for i in range(20)], "yaml", "field_f1"),
        ([f"- name: Ann\n  age: {i}\n- name: Bob\n  age: 7\n" for i in range(20)], "yaml", "field_f1"),
        ([f"```yaml\n{YAML.format(i)}```" for i in range(20)], "yaml", "field_f1"),
        ([XML.format(i) for i in range(20)], "xml", "field_f1"),
        ([f"<answer>{i}</answer>" for i in range(20)], "xml", "exact_match"),
        ([f"<p>It is <b>{i}</b> and then some more words.</p>" for i in range(20)], "xml", "chrf"),
        ([f"name,age\nAnn,{i}\nBob,{i}" for i in range(20)], "csv", "exact_match"),
        ([f"Ann;{i};Oslo" for i in range(20)], "csv", "exact_match"),
        ([f"Ann\t{i}\nBob\t{i}" for i in range(20)], "csv", "exact_match"),
        ([f"1,{i:03}" for i in range(20)], "generation", "exact_match"),
        ([f"1,{i:03},000" for i in range(20)], "generation", "exact_match"),
        ([f"3,{i}" for i in range(20)], "generation", "exact_match"),
        ([f"red, {i}, blue" for i in range(20)], "generation", "exact_match"),
    ],
)
def test_tasks_are_recognised_from_the_rows(targets: list[str], kind: str, metric: str) -> None:
    assert detected(*targets) == (kind, metric)


def test_documents_and_calls_are_recognised() -> None:
    assert detect_task([Text("a document", "x")]).kind.name == "text"
    call, answers = ToolCall("f", {"a": 1}), chats(*[f"some words {i}" for i in range(8)])
    assert detect_task([calling(call)] * 2 + answers).kind.name == "tool_calls"
    assert detect_task([calling(call), *answers]).kind.name == "generation"


def test_a_few_other_answers_do_not_change_the_task() -> None:
    objects = [json.dumps({"a": i}) for i in range(96)]
    assert detected(*objects, *["I cannot answer that."] * 4) == ("json", "field_f1")
    assert detected(*objects[:90], *[f"I cannot answer that, {i}." for i in range(10)])[0] == "generation"
    texts = [YAML.format(i) for i in range(96)]
    assert detected(*texts, *["I cannot answer that."] * 4) == ("yaml", "field_f1")
    assert detected(*texts[:90], *[f"I cannot answer that, {i}." for i in range(10)])[0] == "generation"


# -- prose

WORDS = ["the", "dog", "ran", "over", "hills", "and", "saw", "it", "was", "red", "well", "no", "yes", "Ann", "Paris"]
STARTS = ["", "", "", "Note: ", "Remember: ", "Answer: ", "Step 1: ", "- ", "* ", "1. ", "PS: ", "# ", "> "]


@st.composite
def prose(draw: st.DrawFn) -> str:
    """Sentences with commas, semicolons, colons and bullets, on one line or several."""
    rng = random.Random(draw(st.integers(0, 2**32 - 1)))

    def sentence() -> str:
        words = rng.choices(WORDS, k=rng.randint(3, 12))
        marked = [w + rng.choice(["", "", "", "", ",", ";", ":"]) for w in words[:-1]] + words[-1:]
        return rng.choice(STARTS) + " ".join(marked).capitalize() + rng.choice(".!?")

    return rng.choice([" ", "\n", "\n\n"]).join(sentence() for _ in range(rng.randint(1, 5)))


@settings(max_examples=300, deadline=None)
@given(prose())
@example("Yes, it is.")
@example("Name: the dog saw it.\nAge: the cat ran.")
@example("Dear Ann,\nthank you, Bob,\nsee you soon, Cid")
@example("a < b and c > d")
def test_prose_is_never_structured(text: str) -> None:
    assert not yaml_notation.is_certainly_yaml(text)
    assert csv_lines.shape(text) is None
    assert not xml_notation.is_xml(text)


@settings(max_examples=50, deadline=None)
@given(st.lists(prose(), min_size=10, max_size=20))
def test_rows_answered_in_prose_are_free_text(answers: list[str]) -> None:
    assert detect_task(chats(*answers)).kind.name in ("generation", "label")


def test_mappings_with_ever_other_keys_are_not_a_yaml_task() -> None:
    answers = [f"{a}{i}: now\n{b}{i}: later" for i, (a, b) in enumerate([("wait", "stop"), ("go", "run")] * 10)]
    assert all(map(yaml_notation.is_certainly_yaml, answers))
    assert detected(*answers)[0] == "generation"


# -- every kind

ROWS = {
    "tool_calls": [calling(ToolCall("f", {"a": i})) for i in range(20)],
    "json": chats(*[json.dumps([{"a": i, "b": "x"}]) for i in range(20)]),
    "label": chats(*["yes", "no"] * 10),
    "xml": chats(*[XML.format(i) for i in range(20)]),
    "yaml": chats(*[YAML.format(i) for i in range(20)]),
    "csv": chats(*[f"a,{i}\nb,{i}" for i in range(20)]),
    "generation": chats(*[f"words {i}" for i in range(20)]),
}


def task_of(kind: str) -> Task:
    task = detect_task(ROWS[kind])
    assert task.kind.name == kind
    return task


def test_every_kind_has_rows_here() -> None:
    assert {"text", "rewards", "retrieval", *ROWS} == {kind.name for kind in KINDS}


@pytest.mark.parametrize("kind", ROWS)
def test_a_summary_has_every_metric_that_its_kind_names(kind: str) -> None:
    task = task_of(kind)
    likely = Likelihood(4, 2.0)
    scores = [task.score(e, Answer("yes", Written(1, False), (), 1, likely)) for e in ROWS[kind]]
    assert tuple(task.summary(scores)) == tuple(n for n in task.kind.summary if n != "schema_valid")
    assert task.summary([]) == {}


@pytest.mark.parametrize("kind", ROWS)
def test_the_target_itself_is_right_valid_and_scores_1(kind: str) -> None:
    task = task_of(kind)
    for row in ROWS[kind]:
        score = task.score(row, Answer(row.target, Written(1, False), (), 1))
        assert score.score == pytest.approx(1.0)
        assert score.readings is not None
        assert (score.readings.exact_match, score.readings.strict_match) == (1.0, 1.0)
        assert score.readings.valid is not False


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("lazy", ["", "I'm sorry, but I can't help with that.", "null", "{}", "[]", "---"])
def test_silence_and_refusal_score_nothing(kind: str, lazy: str) -> None:
    task = task_of(kind)
    score = task.score(ROWS[kind][0], Answer(lazy, Written(1, False), (), 1))
    assert score.score < 0.2
    assert score.readings is not None
    assert score.readings.exact_match == 0.0


PIECES = [
    "{",
    "}",
    "[",
    "]",
    '"a"',
    ":",
    ",",
    "1",
    "-",
    "\n",
    " ",
    "<a>",
    "</a>",
    "```",
    "\0",
    "\ud800",
    "NaN",
    "&a",
    "*a",
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(ROWS)), st.lists(st.sampled_from(PIECES), max_size=30).map("".join), st.booleans())
def test_any_text_can_be_an_answer_or_a_target(kind: str, text: str, as_target: bool) -> None:
    task = detect_task(ROWS[kind])
    example = chats(text)[0] if as_target else ROWS[kind][0]
    score = task.score(example, Answer(ROWS[kind][0].target if as_target else text, Written(1, False), (), 1))
    assert 0.0 <= score.score <= 1.0
    if kind not in ("label", "generation", "csv"):
        task.compare(example, Answer(text, Written(1, False)))
    task.kind.canonical(example)


@pytest.mark.parametrize("kind", ROWS)
def test_every_verdict_metric_scores_every_answer(kind: str) -> None:
    import dataclasses

    task = task_of(kind)
    for metric in task.kind.metrics:
        answer = Answer("x", Written(1, False), (), 1, Likelihood(4, 2.0))
        scored = dataclasses.replace(task, metric=metric).score(ROWS[kind][0], answer)
        assert 0.0 <= scored.score <= metric.bound


@pytest.mark.parametrize("kind", ROWS)
def test_an_instruction_describes_the_form(kind: str) -> None:
    task = task_of(kind)
    text = task.kind.instruct(task, ROWS[kind])
    assert text.startswith("Answer ")
    expected = {
        "tool_calls": "f(a)",
        "json": '[{"a": 0, "b": "x"}]',
        "xml": "order.item[].price[]",
        "yaml": "home.city",
        "csv": "2 values separated by ','",
        "label": "no, yes",
        "generation": "about 2 words",
    }
    assert expected[kind] in text


def test_the_instruction_for_flat_objects_is_as_it_always_was() -> None:
    rows = chats('{"b": 1, "a": "x"}', '{"b": 2}', '{"b": 3, "c": ["y"]}')
    task = detect_task(rows)
    assert task.kind.instruct(task, rows) == (
        "Answer with one JSON object and nothing else. Use only these keys, and only those that apply: b, a, c."
    )
