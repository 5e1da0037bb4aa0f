"""Calls that a model wrote are read back, in every notation; no text is an error."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunewright.data.messages import Message, ToolCall
from tunewright.data.tool_calls import parse

OSLO = ToolCall("get_weather", {"city": "Oslo", "days": 3, "metric": True, "note": None})
BERN = ToolCall("get_weather", {"city": "Bern"})
IN_OSLO, IN_BERN = (json.dumps(c.arguments) for c in (OSLO, BERN))
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": ["integer", "null"]}},
        },
    },
}

ONE = {
    "hermes": f'<tool_call>\n{{"name": "get_weather", "arguments": {IN_OSLO}}}\n</tool_call>',
    "hermes, cut before its end": f'<tool_call>\n{{"name": "get_weather", "arguments": {IN_OSLO}}}',
    "arguments as text": json.dumps({"name": "get_weather", "arguments": IN_OSLO}),
    "openai": json.dumps({"type": "function", "function": {"name": "get_weather", "arguments": IN_OSLO}}),
    "llama 3.1": f'{{"name": "get_weather", "parameters": {IN_OSLO}}}',
    "llama 3.1, after its token": f'<|python_tag|>{{"name": "get_weather", "parameters": {IN_OSLO}}}',
    "llama 3.1, custom": f"<function=get_weather>{IN_OSLO}</function>",
    "fenced": f'```json\n[{{"name": "get_weather", "arguments": {IN_OSLO}}}]\n```',
    "mistral 0.3": f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {IN_OSLO}}}]',
    "mistral, token skipped": f'[{{"name": "get_weather", "arguments": {IN_OSLO}}}]',
    "mistral 3": f"[TOOL_CALLS]get_weather[ARGS]{IN_OSLO}",
    "granite": f'<|tool_call|>[{{"name": "get_weather", "arguments": {IN_OSLO}}}]',
    "command r": f'<|START_ACTION|>[{{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {IN_OSLO}}}]'
    "<|END_ACTION|>",
    "deepseek v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
    f"{IN_OSLO}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseek v3.1": f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{IN_OSLO}<｜tool▁call▁end｜>"
    "<｜tool▁calls▁end｜>",
    "kimi k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
    f"{IN_OSLO}<|tool_call_end|><|tool_calls_section_end|>",
    "gpt-oss": f" to=functions.get_weather<|channel|>commentary json<|message|>{IN_OSLO}<|call|>",
    "gpt-oss, as generated": "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>" + IN_OSLO,
    "qwen3 coder": "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n<parameter=days>\n3\n"
    "</parameter>\n<parameter=metric>\nTrue\n</parameter>\n<parameter=note>\nnull\n</parameter>\n</function>\n"
    "</tool_call>",
    "glm": "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n<arg_key>days</arg_key>\n"
    "<arg_value>3</arg_value>\n<arg_key>metric</arg_key>\n<arg_value>true</arg_value>\n<arg_key>note</arg_key>\n"
    "<arg_value>null</arg_value>\n</tool_call>",
    "minimax": '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Oslo</parameter>\n<parameter '
    'name="days">3</parameter>\n<parameter name="metric">true</parameter>\n<parameter name="note">null</parameter>\n'
    "</invoke>\n</minimax:tool_call>",
    "gemma 4": '<|tool_call>call:get_weather{city:<|"|>Oslo<|"|>,days:3,metric:true,note:null}<tool_call|>',
    "lfm 2": "<|tool_call_start|>[get_weather(city='Oslo', days=3, metric=True, note=None)]<|tool_call_end|>",
    "llama 3.2": '[get_weather(city="Oslo", days=3, metric=True, note=None)]',
}


@pytest.mark.parametrize("notation", ONE)
def test_a_call_is_read_in_every_notation(notation: str) -> None:
    assert parse(ONE[notation]) == ("", (OSLO,))
    thought = "<think>\nLet me see.\n</think>\n\n"
    assert parse(thought + ONE[notation]) == ("", (OSLO,))


def test_several_calls_keep_their_order() -> None:
    call = '<tool_call>\n{{"name": "get_weather", "arguments": {}}}\n</tool_call>'
    assert parse(f"One moment.\n{call.format(IN_OSLO)}\n{call.format(IN_BERN)}") == ("One moment.", (OSLO, BERN))
    lines = f'{{"name": "get_weather", "arguments": {IN_OSLO}}}\n{{"name": "get_weather", "arguments": {IN_BERN}}}'
    assert parse(lines) == ("", (OSLO, BERN))
    assert parse(f"[TOOL_CALLS]get_weather{IN_OSLO}[TOOL_CALLS]get_weather{IN_BERN}") == ("", (OSLO, BERN))


@pytest.mark.parametrize(
    "text",
    [
        "It is four degrees.",
        '{"name": "Anna", "age": 4}',
        '{"name": "Anna", "arguments": {}, "age": 4}',
        "[1, 2, 3]",
        "[]",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Os',
        "<function=f>",
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        "[TOOL_CALLS]",
        "see call:me{",
    ],
)
def test_what_is_no_call_remains_content(text: str) -> None:
    assert parse(text) == (text, ())


def test_a_declared_type_decides_between_text_and_number() -> None:
    written = "<function=get_weather><parameter=city>75001</parameter><parameter=days>3</parameter></function>"
    assert parse(written)[1][0].arguments == {"city": 75001, "days": 3}
    assert parse(written, (WEATHER,))[1][0].arguments == {"city": "75001", "days": 3}
    empty = written.replace("75001", "null").replace(">3<", ">None<")
    assert parse(empty, (WEATHER,))[1][0].arguments == {"city": "null", "days": None}


def test_a_call_inside_an_argument_is_text() -> None:
    inner = ToolCall("write", {"text": ONE["qwen3 coder"] + ONE["gemma 4"]})
    assert parse(f"<tool_call>{inner.text}</tool_call>") == ("", (inner,))


@pytest.mark.parametrize(
    "text",
    [
        " ",
        "\n",
        "```",
        "``` ",
        "<tool_call>",
        "<tool_call> ",
        "<function=f>",
        "<|channel>thought\n",
        " to=",
        "<a:invoke ",
        "[f(",
        "{'a':",
    ],
)
def test_a_long_text_takes_linear_time(text: str) -> None:
    """A model that repeats itself must not stop its evaluation."""
    start = time.process_time()
    parse(text * (60_000 // len(text)) + "x", (WEATHER,))
    assert time.process_time() - start < 3


names = st.from_regex(r"[a-z][a-z_0-9.]{0,15}", fullmatch=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
calls = st.builds(ToolCall, names, st.dictionaries(st.text(), values, max_size=3))


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8", categories=("L", "N", "Zs"))), st.lists(calls, max_size=3))
def test_the_text_of_a_message_is_read_back(content: str, made: list[ToolCall]) -> None:
    """`Message.text` is what answers are compared with."""
    message = Message("assistant", content.strip(), tuple(made))
    assert parse(message.text) == (message.content, message.tool_calls) or "</think>" in message.text


marks = st.sampled_from(
    [*ONE.values(), "<tool_call>", "</tool_call>", "<|", "|>", "{", "}", "[", "]", "(", ")", "'", '"']
)
odd = st.lists(marks | st.text(max_size=5) | marks.map(lambda m: m[: len(m) // 2]), max_size=8).map("".join)


@settings(deadline=None, max_examples=300)
@given(odd | st.text())
@example("[" * 100_000)
@example("<tool_call>" + '{"a":' * 100_000)
@example("<|tool_call_start|>" + "[f(a=" * 50_000)
@example('{"name": "f", "arguments": {"x": ' + "9" * 5000 + "}}")
@example('{"name": "f", "arguments": {"x": NaN}}')
def test_no_text_is_an_error(text: str) -> None:
    content, read = parse(text, (WEATHER,))
    assert isinstance(content, str)
    assert all(call.name for call in read)
    json.dumps([call.arguments for call in read], allow_nan=False)
