"""Tool calls as answers: scored call by call, and calling where nothing should be called is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tunewright.data.messages import Chat, Message, ToolCall
from tunewright.data.scores import Answer, Readings, Score, Written
from tunewright.data.structure.comparison import PLAIN, Rules
from tunewright.data.task import TOOL_CALLS, detect_task


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = (
    tool("weather", city={"type": "string"}, days={"type": "integer", "maximum": 7}),
    tool("search", query={"type": "string"}),
)
OSLO = ToolCall("weather", {"city": "Oslo", "days": 3})
ROME = ToolCall("weather", {"city": "Rome", "days": 3})


def row(*calls: ToolCall, content: str = "", tools: tuple[Any, ...] = TOOLS) -> Chat:
    return Chat((Message("user", "q"), Message("assistant", content, calls)), "x", tools)


def scored(example: Chat, answer: str, rules: Rules = PLAIN) -> Score:
    task = replace(detect_task([row(OSLO)]), rules=rules)
    assert task.kind is TOOL_CALLS
    return task.score(example, Answer(answer, Written(1, False)))


def readings(example: Chat, answer: str) -> Readings:
    actual = scored(example, answer).readings
    assert actual is not None
    return actual


def hermes(*calls: ToolCall) -> str:
    return "\n".join(f"<tool_call>\n{c.text}\n</tool_call>" for c in calls)


NOTATIONS = [
    lambda *calls: "\n".join(c.text for c in calls),
    lambda *calls: "\n".join(c.text for c in calls) + "\n",
    lambda *calls: "Sure.\n" + "\n".join(c.text for c in calls) + " \n\n",
    hermes,
    lambda *calls: "<think>Which one?</think>\n" + hermes(*calls),
    lambda *calls: "[TOOL_CALLS] " + json.dumps([{"name": c.name, "arguments": c.arguments} for c in calls]),
]


@pytest.mark.parametrize("written", NOTATIONS)
@pytest.mark.parametrize("calls", [(OSLO,), (OSLO, ROME), (ROME, ToolCall("search", {"query": "Rome"}), OSLO)])
def test_right_calls_are_right_in_any_notation_and_order(written: Any, calls: tuple[ToolCall, ...]) -> None:
    example = row(*calls)
    for order in (calls, calls[::-1]):
        assert scored(example, written(*order)).score == 1.0
        assert readings(example, written(*order)).exact_match == 1.0
        assert readings(example, written(*order)).valid
    in_reverse = scored(example, written(*calls[::-1]), Rules(ordered=True)).score
    assert (in_reverse == 1.0) == (len(calls) == 1)


@pytest.mark.parametrize(
    ("target", "given", "score"),
    [
        ((OSLO,), (ROME,), 2 / 3),  # the call and days are right, the city is not
        ((OSLO,), (ToolCall("weather", {"city": "Oslo"}),), 0.8),
        ((OSLO,), (ToolCall("forecast", OSLO.arguments),), 0.0),  # arguments of another tool are not right
        ((OSLO,), (OSLO, OSLO), 2 / 3),
        ((OSLO, ROME), (OSLO,), 2 / 3),
        ((OSLO, ROME), (replace(OSLO, arguments={"city": "Oslo", "days": 4}), ROME), 5 / 6),
        ((ToolCall("now", {}),), (ToolCall("now", {}),), 1.0),
        ((ToolCall("now", {}),), (ToolCall("then", {}),), 0.0),
    ],
)
def test_oracles_of_the_score(target: tuple[ToolCall, ...], given: tuple[ToolCall, ...], score: float) -> None:
    assert scored(row(*target), hermes(*given)).score == pytest.approx(score)


def test_calling_where_nothing_should_be_called_is_wrong_and_so_is_the_opposite() -> None:
    words = row(content="Hello, how can I help?")
    assert scored(words, "Hi! What can I do?").score == 1.0, "its words are not judged"
    assert readings(words, "Hi! What can I do?").strict_match == 0.0, "except by the strict match"
    assert readings(words, "hello, how can I help?").strict_match == 1.0
    assert scored(words, "").score == 1.0
    assert scored(words, hermes(OSLO)).score == 0.0
    assert scored(row(OSLO), "It is sunny in Oslo.").score == 0.0
    assert readings(row(OSLO), "It is sunny in Oslo.").valid is False


@pytest.mark.parametrize(
    ("given", "valid"),
    [
        (hermes(OSLO), True),
        (hermes(ToolCall("weather", {"city": "Oslo", "days": 8})), False),
        (hermes(ToolCall("weather", {"days": 1})), False),
        (hermes(ToolCall("weather", {"city": "Oslo", "days": "3"})), False),
        (hermes(ToolCall("wheather", OSLO.arguments)), False),
        (hermes(OSLO) + '\n<tool_call>\n{"name": "weather", "arg', False),
        ("no call", False),
    ],
)
def test_a_call_is_valid_if_its_row_allows_it(given: str, valid: bool) -> None:
    assert readings(row(OSLO), given).valid == valid


def test_without_declared_tools_every_call_that_can_be_read_is_valid() -> None:
    assert readings(row(OSLO, tools=()), hermes(ToolCall("any", {"x": 1}))).valid
    broken = {"type": "function", "function": {"name": "weather", "parameters": {"type": "dict"}}}
    assert readings(row(OSLO, tools=(broken,)), hermes(ToolCall("weather", {"x": 1}))).valid


def test_fields_are_named_after_the_call() -> None:
    task = detect_task([row(OSLO)])
    actual = task.compare(row(OSLO), Answer(hermes(ROME), Written(1, False)))
    assert actual.right == (("weather()", "weather"), ("weather().days", 3))
    assert actual.missed == (("weather().city", "Oslo"),)
    assert task.compare(row(content="no"), Answer("no", Written(1, False))).right == (("(no call)", None),)


def test_the_order_of_arguments_is_no_contradiction() -> None:
    one, other = row(OSLO), row(ToolCall("weather", {"days": 3, "city": "Oslo"}))
    assert TOOL_CALLS.canonical(one) == TOOL_CALLS.canonical(other) != TOOL_CALLS.canonical(row(ROME))


def test_an_instruction_lists_the_tools_that_rows_call() -> None:
    other = ToolCall("weather", {"days": "two", "unit": None})
    rows = [row(OSLO), row(ROME), row(content="Hello!"), row(other), row(OSLO)]
    text = TOOL_CALLS.instruct(detect_task(rows), rows)
    assert "weather(city, days, unit)" in text
    assert "If no tool is needed, answer in words." in text
    assert "in words" not in TOOL_CALLS.instruct(detect_task(rows), rows[:2])
    many = [row(ToolCall(f"f{i}", {})) for i in range(21)]
    assert "f1" not in TOOL_CALLS.instruct(detect_task(many), many)
