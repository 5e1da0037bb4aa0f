"""The same conversation in the notations of OpenAI, ShareGPT, ms-swift and Anthropic; weights; the order of turns."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core.errors import DataError
from tunewright.data import formats
from tunewright.data.formats import RowSettings
from tunewright.data.formats.fields import cleaned_row
from tunewright.data.messages import Chat, Message, ToolCall
from tunewright.data.sources import Row


def read(data: dict[str, Any], **how: Any) -> Chat:
    (example,) = formats.parse([Row(data, "x:1")], RowSettings(**how)).examples
    assert isinstance(example, Chat)
    return example


def chat(*messages: dict[str, Any], **how: Any) -> Chat:
    return read({"messages": list(messages)}, **how)


def problem(*messages: dict[str, Any], **how: Any) -> Any:
    with pytest.raises(DataError) as caught:
        chat(*messages, **how)
    return caught.value.problems[0]


USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"x": 1}}}]}

TWO = {"role": "assistant", "tool_calls": [{"id": i, "function": {"name": f"f{i}"}} for i in "12"]}

# -- one conversation, four notations

texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12).filter(
    str.strip
)
values = st.none() | st.booleans() | st.integers() | texts | st.lists(st.integers(), max_size=2)
arguments = st.dictionaries(texts, values, max_size=3)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """User, then calls with results any number of times, then an answer; all of this one to three times."""
    messages = [Message("system", draw(texts))] if draw(st.booleans()) else []
    number = 0
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message("user", draw(texts)))
        for _ in range(draw(st.integers(0, 2))):
            calls = []
            for _ in range(draw(st.integers(1, 2))):
                number += 1
                calls.append(ToolCall(draw(texts).replace(" ", "_"), draw(arguments), f"call_{number}"))
            messages.append(Message("assistant", draw(texts | st.just("")), tuple(calls)))
            messages += [Message("tool", draw(texts), name=c.name, call_id=c.id) for c in calls]
        messages.append(Message("assistant", draw(texts)))
    return messages


def openai(m: Message) -> list[dict[str, Any]]:
    calls = [{"id": c.id, "function": {"name": c.name, "arguments": json.dumps(c.arguments)}} for c in m.tool_calls]
    return [
        {"role": m.role, "content": m.content or None, "tool_calls": calls or None, "tool_call_id": m.call_id or None}
    ]


def sharegpt(m: Message) -> list[dict[str, Any]]:
    role = {"user": "human", "assistant": "gpt", "tool": "observation"}.get(m.role, m.role)
    own = [{"from": role, "value": m.content}] if m.content or m.role != "assistant" else []
    calls = [{"name": c.name, "arguments": c.arguments} for c in m.tool_calls]
    return own + ([{"from": "function_call", "value": json.dumps(calls)}] if calls else [])


def swift(m: Message) -> list[dict[str, Any]]:
    role = "tool_response" if m.role == "tool" else m.role
    own = [{"role": role, "content": m.content}] if m.content or m.role != "assistant" else []
    one_each = [json.dumps({"name": c.name, "arguments": c.arguments}) for c in m.tool_calls]
    return own + [{"role": "tool_call", "content": call} for call in one_each]


def anthropic(m: Message) -> list[dict[str, Any]]:
    if m.role == "tool":
        return [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": m.call_id, "content": m.content}]}]
    calls = [{"type": "tool_use", "id": c.id, "name": c.name, "input": c.arguments} for c in m.tool_calls]
    own = [{"type": "text", "text": m.content}] if m.content else []
    return [{"role": m.role, "content": own + calls if calls else m.content}]


def without_ids(messages: tuple[Message, ...]) -> list[Message]:
    return [replace(m, call_id="", tool_calls=tuple(replace(c, id="") for c in m.tool_calls)) for m in messages]


@settings(deadline=None)
@given(conversations())
def test_every_notation_of_a_conversation_becomes_the_same_messages(messages: list[Message]) -> None:
    for notation in (openai, anthropic):
        assert read({"messages": [x for m in messages for x in notation(m)]}).messages == tuple(messages)
    for field, notation in (("messages", swift), ("conversations", sharegpt)):
        written = read({field: [x for m in messages for x in notation(m)]})
        assert without_ids(written.messages) == without_ids(tuple(messages))
    stored = [Message.from_json(m.to_json()) for m in messages]
    assert stored == messages


# -- contents


def test_parts_thoughts_and_results_that_are_not_text() -> None:
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(USER, {"role": "assistant", "content": parts}).messages[1] == Message(
        "assistant", "a\nb", reasoning="hm"
    )
    for name in ("reasoning_content", "reasoning", "thinking"):
        assert chat(USER, {**ANSWER, name: "hm"}).messages[1].reasoning == "hm"
    result = {"role": "tool", "content": {"t": 4, "ü": None}}
    assert chat(USER, CALL, result, ANSWER).messages[2] == Message("tool", '{"t": 4, "ü": null}', name="f")


def test_a_table_has_messages_and_history_as_json_text() -> None:
    assert read({"messages": json.dumps([USER, ANSWER])}).messages == chat(USER, ANSWER).messages
    assert len(read({"query": "q", "response": "a", "history": '[["q", "a"]]'}).messages) == 4
    for broken in ("[{'role': 'user'}]", "4", ""):
        with pytest.raises(DataError) as caught:
            read({"messages": broken}, format="chat")
        assert caught.value.code == "DATA_FIELD_TYPE"


BAD_JSON = [
    ('{"role": "user", "content": "x \\ud800"}', "DATA_UNICODE"),
    ('{"role": "user", "content": "x \\u0000"}', "DATA_CONTROL_CHAR"),
    ('{"role": "user", "content": "x", "name": NaN}', "DATA_NUMBER_NOT_FINITE"),
    ('{"role": "user", "content": "x", "content": "y"}', "DATA_DUPLICATE_KEY"),
    ('{"role": "user", "content": "x", "n": ' + "[" * 101 + "]" * 101 + "}", "DATA_TOO_DEEP"),
]


@pytest.mark.parametrize(("user", "code"), BAD_JSON)
def test_json_in_a_string_is_checked_like_json_in_a_file(user: str, code: str) -> None:
    with pytest.raises(DataError) as caught:
        read({"messages": f"[{user}, {json.dumps(ANSWER)}]"})
    assert (caught.value.code, caught.value.where) == (code, "x:1")
    assert "data." in caught.value.problems[0].fix
    for bad, at in (({"tools": f'[{{"name": "f", "description": {user}}}]'}, "tools"), ({"history": f"[{user}]"}, "")):
        with pytest.raises(DataError) as caught:
            read({"query": "q", "response": "a", **bad})
        assert caught.value.code == code, at


def test_control_characters_of_json_in_a_string_are_removed_on_request() -> None:
    call = {
        "role": "assistant",
        "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"x": "\\u001bA"}'}}],
    }
    text = json.dumps([{"role": "user", "content": 'x\ud800 "\u0000'}, call, {"role": "tool", "content": "[]"}, ANSWER])
    row = Row({"messages": text, "note": "\\u0000", "more": '{"a": "\\u0000"'}, "x:1")
    parsed = formats.parse([row], RowSettings(control="strip"))
    (example,) = parsed.examples
    assert [m.text for m in example.messages if m.role == "user"] == ['x "']
    assert example.messages[1].tool_calls == (ToolCall("f", {"x": "A"}, "1"),)
    assert [p.code for p in parsed.fixed] == ["DATA_UNICODE"]
    clean = cleaned_row(row, "space")
    assert clean.data["note"] == "\\u0000", "a string that is not JSON stays as it is"
    assert clean.data["more"] == row.data["more"]
    assert json.loads(clean.data["messages"])[0]["content"] == 'x  " '
    assert cleaned_row(clean, "strip") == clean
    assert formats.parse([clean], RowSettings()).fixed == ()


def test_fields_of_messages_in_a_string_that_are_not_read_are_counted() -> None:
    text = json.dumps([{**USER, "mood": "sad"}, ANSWER])
    assert formats.parse([Row({"messages": text}, "x:1")], RowSettings()).unused == {"messages[].mood": 1}
    assert formats.parse([Row({"prompt": "[sic] q", "completion": "a"}, "x:1")], RowSettings()).unused == {}


def test_an_excerpt_of_a_field_is_masked_before_it_is_cut() -> None:
    answer = {"role": "assistant", "content": "a"}
    for data in (
        {"messages": [USER, answer], "tools": "[0, 'this is of john.doe@example.com', 1]"},
        {"messages": [{"role": "user", "content": {"": "something of john.doe@example.com"}}, answer]},
    ):
        with pytest.raises(DataError) as caught:
            read(data)
        assert "john" not in str(caught.value)
        assert "*" in str(caught.value)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("hello", "DATA_FIELD_TYPE"),
        ({"role": "narrator", "content": "a"}, "DATA_ROLE_UNKNOWN"),
        ({"content": "a"}, "DATA_ROLE_UNKNOWN"),
        ({"role": "assistant", "content": " "}, "DATA_EMPTY_TARGET"),
        ({"role": "assistant", "content": "<think>Hm.</think>\n"}, "DATA_EMPTY_TARGET"),
        ({"role": "assistant", "content": 4}, "DATA_FIELD_TYPE"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "a.png"}]}, "DATA_FORM_UNSUPPORTED"),
        ({"role": "user", "content": [{"type": "hologram"}]}, "DATA_FIELD_TYPE"),
        ({"role": "user", "content": ["a"]}, "DATA_FIELD_TYPE"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, "DATA_FIELD_TYPE"),
        ({**USER, "tool_calls": CALL["tool_calls"]}, "DATA_TOOL_CALL"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "DATA_TOOL_CALL"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}, "DATA_TOOL_CALL"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}, "DATA_TOOL_CALL"),
        ({"role": "tool_call", "content": None}, "DATA_TOOL_CALL"),
        ({**ANSWER, "weight": 0.5}, "DATA_WEIGHT"),
        ({**ANSWER, "weight": [1]}, "DATA_WEIGHT"),
        ({**ANSWER, "weight": 1, "train": False}, "DATA_WEIGHT"),
        ({"role": "assistant", "content": [{"type": "text", "text": "hi", "weight": "0"}]}, "DATA_WEIGHT"),
        ({"role": "assistant", "content": [{"type": "text", "text": "hi", "weight": 0.5}]}, "DATA_WEIGHT"),
        ({"role": "assistant", "content": [{"type": "text", "text": "hi", "weight": [1]}]}, "DATA_WEIGHT"),
        ({"role": "assistant", "content": [{"type": "text", "text": "hi", "weight": 1, "loss": 0}]}, "DATA_WEIGHT"),
        ({"role": "assistant", "content": [{"type": "text", "text": "hi", "weight": 0}], "weight": 1}, "DATA_WEIGHT"),
        ({**ANSWER, "train_detail": [{"begin_offset": 0, "end_offset": 0, "train": False}]}, "DATA_WEIGHT"),
    ],
    ids=str,
)
def test_a_message_that_cannot_be_read(message: Any, code: str) -> None:
    reported = problem(USER, message)
    assert (reported.code, reported.where) == (code, "x:1")
    assert reported.fix


def test_every_problem_of_a_row_is_reported() -> None:
    with pytest.raises(DataError) as caught:
        chat({"role": "user", "content": ""}, {"role": "x", "content": "a"})
    assert [p.code for p in caught.value.problems] == ["DATA_EMPTY_TARGET", "DATA_ROLE_UNKNOWN"]


# -- tools


@pytest.mark.parametrize(
    "tools",
    [
        [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
        [{"name": "f", "input_schema": {"type": "object"}}],
        {"name": "f", "parameters": '{"type": "object"}'},
        ['{"name": "f", "parameters": {"type": "object"}}'],
    ],
    ids=str,
)
def test_tools_have_one_form(tools: Any) -> None:
    expected = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    for given_tools in (tools, json.dumps(tools)):
        assert read({"messages": [USER, ANSWER], "tools": given_tools}).tools == (expected,)
        assert read({"messages": [USER, ANSWER], "functions": given_tools, "tools": []}).tools == (expected,)


@pytest.mark.parametrize(
    "tools", [4, [{"description": "x"}], "look it up", [{"name": "f", "parameters": [1]}]], ids=str
)
def test_tools_that_cannot_be_read(tools: Any) -> None:
    with pytest.raises(DataError) as caught:
        read({"messages": [USER, ANSWER], "tools": tools})
    assert caught.value.code == "DATA_TOOL_CALL"


def test_results_get_the_names_of_their_calls() -> None:
    by_id = chat(USER, TWO, *({"role": "tool", "content": i, "tool_call_id": i} for i in "21"), ANSWER)
    assert [(m.name, m.content) for m in by_id.messages[2:4]] == [("f1", "1"), ("f2", "2")], "in the order of the calls"
    by_place = chat(USER, TWO, *({"role": "tool", "content": i} for i in "12"), ANSWER)
    assert [m.name for m in by_place.messages[2:4]] == ["f1", "f2"]


# -- weights


@pytest.mark.parametrize("name", ["weight", "train", "training", "loss", "loss_scale"])
@pytest.mark.parametrize("value", [0, 0.0, False])
def test_an_answer_without_weight_is_context(name: str, value: Any) -> None:
    row = chat(USER, {**ANSWER, name: value}, USER, {**ANSWER, name: 1})
    assert [m.trained for m in row.messages if m.role == "assistant"] == [False, True]
    assert tuple(replace(m, trained=True) for m in row.messages) == chat(USER, ANSWER, USER, ANSWER).messages


def test_what_follows_the_last_trained_answer_is_left_out() -> None:
    assert chat(USER, ANSWER, USER, {**ANSWER, "weight": 0}).messages == chat(USER, ANSWER).messages
    assert problem(USER, {**ANSWER, "weight": 0}).code == "DATA_NOTHING_TO_LEARN"
    assert problem(USER).code == "DATA_NOTHING_TO_LEARN"


def test_a_call_in_a_message_of_its_own_with_weight_0_is_not_trained_on() -> None:
    call = {"role": "tool_call", "content": {"name": "f", "arguments": {}}, "loss": False}
    row = chat(USER, ANSWER, call, {"role": "tool_response", "content": "r"}, ANSWER)
    assert [(m.role, m.trained) for m in row.messages] == [
        ("user", True),
        ("assistant", False),
        ("tool", True),
        ("assistant", True),
    ]


# -- order


@pytest.mark.parametrize(
    ("messages", "fragment"),
    [
        ([USER, ANSWER, {"role": "system", "content": "s"}, USER, ANSWER], "system message occurs after"),
        ([ANSWER], "does not begin with the user"),
        ([USER, USER, ANSWER], "two user messages"),
        ([USER, ANSWER, ANSWER], "two assistant messages"),
        ([USER, CALL, USER, ANSWER], "no result"),
        ([USER, {"role": "tool", "content": "r"}, ANSWER], "does not follow a tool call"),
        ([USER, CALL, {"role": "tool", "content": "r", "tool_call_id": "2"}, ANSWER], "no tool call has the id '2'"),
        ([USER, TWO, {"role": "tool", "content": "r", "tool_call_id": "2"}, ANSWER], "the tool call '1' has no result"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_an_order_that_is_no_conversation(messages: list[dict[str, Any]], fragment: str) -> None:
    reported = problem(*messages)
    assert reported.code == "DATA_TURN_ORDER"
    assert fragment in reported.message
    assert reported.fix


def test_turns_can_be_fixed() -> None:
    row = chat(ANSWER, USER, USER, ANSWER, {**ANSWER, "reasoning": "hm"}, USER, fix_turns=True)
    assert row.messages == (Message("user", "q\n\nq"), Message("assistant", "a\n\na", reasoning="hm"))
    no = {**ANSWER, "weight": 0}
    joined = chat(USER, no, no, USER, ANSWER, ANSWER, fix_turns=True)
    assert [(m.content, m.trained) for m in joined.messages[1::2]] == [("a\n\na", False), ("a\n\na", True)]


@pytest.mark.parametrize("fix_turns", [False, True])
def test_answers_of_two_weights_are_not_joined(fix_turns: bool) -> None:
    """Joined, a target would become context, or a context a target."""
    no = {**ANSWER, "weight": 0}
    for pair in ((ANSWER, no), (no, ANSWER)):
        with pytest.raises(DataError, match="of which one is trained on and one is not") as caught:
            chat(USER, *pair, USER, ANSWER, fix_turns=fix_turns)
        assert "turns" not in caught.value.problems[0].fix


def test_an_empty_system_message_is_none() -> None:
    for content in ("", " ", None, []):
        assert chat({"role": "system", "content": content}, USER, ANSWER) == chat(USER, ANSWER)
    assert problem({"role": "system", "content": ""}).code == "DATA_EMPTY_TARGET"


def test_turns_after_the_last_answer_are_counted() -> None:
    rows = [Row({"messages": [USER, ANSWER, *rest]}, f"x:{i}") for i, rest in enumerate(([], [USER], [USER]))]
    assert formats.parse(rows).unused == {"messages after the last answer": 2}


ITEMS = [{"text": "Anna", "label": "PER"}], [{"from": "Linz", "to": "Graz"}], [{"model": "X2", "user": "Anna"}]


@pytest.mark.parametrize("value", [{"a": 1}, *ITEMS, [1, 2], []], ids=str)
def test_an_answer_that_is_an_object_or_a_list_is_json(value: Any) -> None:
    text = json.dumps(value)
    for given_ in (value, text):
        for row in (
            {"prompt": "q", "completion": given_},
            {"instruction": "q", "output": given_},
            {"prompt": [USER], "completion": given_},
            {"prompt": "q", "response": given_},
        ):
            parsed = formats.parse([Row(row, "x:1")])
            assert parsed.examples[0].target == text
            assert not parsed.unused, "no field of an answer is a field of a message"
    assert chat(USER, {"role": "assistant", "content": {"a": 1}}).target == '{"a": 1}'


def test_annotations_are_learned_as_json_by_the_setting_that_the_error_names() -> None:
    row = {"text": "Anna sings", "entities": [{"text": "Anna", "label": "PER"}]}
    with pytest.raises(DataError, match=r"\{prompt: text, completion: entities\}"):
        read(row)
    assert read(row, columns={"prompt": "text", "completion": "entities"}).target == json.dumps(row["entities"])
    assert formats.parse([Row(row, "x:1")], RowSettings(format="text", as_asked=True)).examples[0].text == "Anna sings"
