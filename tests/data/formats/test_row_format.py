"""Rows of every format become the same examples; the format is detected, and two that fit are decided by order."""

from __future__ import annotations

import itertools
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tunewright.core import config
from tunewright.core.errors import DataError
from tunewright.data import formats
from tunewright.data.formats import FORMATS, RowSettings
from tunewright.data.formats.row_format import detect
from tunewright.data.messages import Chat, Message, Text, turns
from tunewright.data.remedies import prepared
from tunewright.data.sources import Row

SAMPLES = json.loads(Path(__file__).with_name("forms.json").read_text(encoding="utf-8"))
SAME = {
    "chat": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "conversation": {"conversation": [{"human": "q", "assistant": "a"}]},
    "contents": {"contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}]},
    "labelled_chat": {"messages": [{"role": "user", "content": "q"}], "label": "a"},
    "completion": {"prompt": "q", "completion": "a"},
    "instruction": {"instruction": "q", "input": "", "output": "a"},
    "instruction_response": {"instruction": "q", "response": "a"},
    "question": {"question": "q", "answer": "a"},
    "label": {"text": "q", "label": "a"},
}


def read(data: dict[str, Any], **how: Any) -> Chat:
    (example,) = formats.parse([Row(data, "x:1")], RowSettings(**how)).examples
    assert isinstance(example, Chat)
    return example


def compact(m: Message) -> dict[str, Any]:
    """A message without what it does not have, as tests/data/formats/forms.json has it."""
    calls = [[c.name, c.arguments, *([c.id] if c.id else [])] for c in m.tool_calls]
    more = {"calls": calls, "reasoning": m.reasoning, "name": m.name, "call_id": m.call_id}
    trained = {} if m.trained else {"trained": False}
    return {"role": m.role, "content": m.content, **{k: v for k, v in more.items() if v}, **trained}


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: f"{s['source']}: {s['form']}")
def test_every_documented_form_becomes_the_messages_it_means(sample: dict[str, Any]) -> None:
    row, how = Row(sample["row"], "x:1"), RowSettings(**sample.get("settings", {}))
    if "refused" in sample:
        with pytest.raises(DataError) as caught:
            formats.parse([row], how)
        assert caught.value.code == sample["refused"]
        assert caught.value.problems[0].fix
        return
    parsed = formats.parse([row], how)
    (example,) = parsed.examples
    assert parsed.format == sample["format"]
    if "document" in sample:
        assert example == Text(sample["document"], "x:1")
        return
    assert [compact(m) for m in example.messages] == sample["messages"]
    assert [t["function"]["name"] for t in example.prompt.tools] == sample.get("tools", [])
    assert isinstance(example, Chat)
    assert (example.rejected and compact(example.rejected)) == sample.get("rejected")
    assert example.desirable == sample.get("desirable")


def test_the_forms_are_many_and_few_are_refused() -> None:
    assert len(SAMPLES) >= 60
    assert {s["source"] for s in SAMPLES} >= {"OpenAI", "TRL", "LLaMA-Factory", "Axolotl", "ms-swift", "Unsloth"}
    assert sum("refused" in s for s in SAMPLES) <= 3


@pytest.mark.parametrize("name", list(SAME))
def test_all_formats_give_the_same_chat(name: str) -> None:
    parsed = formats.parse([Row({**SAME[name], "note": 1}, "x:1")])
    assert parsed.format == name
    assert parsed.unused == {"note": 1}
    (chat,) = parsed.examples
    assert [(m.role, m.content) for m in chat.messages] == [("user", "q"), ("assistant", "a")]


def test_columns_and_instruction() -> None:
    chat = read({"ask": "q", "reply": "a"}, columns={"prompt": "ask", "completion": "reply"}, instruction="Be kind.")
    assert chat.messages[0] == Message("system", "Be kind.")


def test_a_mapped_field_replaces_one_of_that_name() -> None:
    chat = read({"prompt": "old", "ask": "q", "completion": "a"}, columns={"prompt": "ask"})
    assert chat.messages[0].content == "q"


def test_fields_of_messages_that_nothing_reads_are_counted() -> None:
    turns = [
        {"role": "user", "content": "q", "name": "anna", "weight": 1, "tool_calls": None},
        {"role": "assistant", "content": "a", "weight": 1, "x": 2},
        {"role": "user", "content": "q", "weight": 0},
        {"role": "assistant", "content": "a"},
    ]
    parsed = formats.parse([Row({"messages": turns, "id": 7, "comment": ""}, "x:1")])
    assert parsed.unused == {"id": 1, "messages[].name": 1, "messages[].weight": 1, "messages[].x": 1}


# -- detection

# The order in which formats are tried. A change of it changes how rows with the fields of two formats are read.
# The others are looked for only where pairs, ratings, or prompts alone, are wanted.
SINGLE = [f for f in FORMATS if not (f.preference or f.rated or f.rewards or f.embedding or f.tags)]
PAIRED_ORDER = ["preferred_output", "rejected_messages", "rejected_response", "preference"]
RATED_ORDER = ["rated_completion", "rated_chat", "tagged_chat", "tagged_sharegpt", "tagged_instruction"]
TEXT_PAIRS = ["anchor_positive", "query_positive", "query_document", "query_passage", "query_answer", "question_answer"]
PAIRS_ORDER = [f"{name}_pair" for name in TEXT_PAIRS]
ORDER = [
    "labelled_chat",
    "chat",
    "sharegpt",
    "conversation",
    "contents",
    "completion",
    "reflection",
    "instruction",
    "instruction_response",
    "revision",
    "query",
    "response",
    "generation",
    "choice",
    "question",
    "question_response",
    "problem",
    "summary",
    "message_pair",
    "input_output",
    "premise_hypothesis",
    "sentence1_sentence2",
    "text1_text2",
    "text_text_pair",
    "question1_question2",
    "question_sentence",
    "label",
    "labels",
    "sentence",
    "text",
]
BY_NAME = {f.name: f for f in FORMATS}
VALUES = {
    "messages": SAME["chat"]["messages"],
    "conversations": SAME["sharegpt"]["conversations"],
    "conversation": SAME["conversation"]["conversation"],
    "contents": SAME["contents"]["contents"],
    "choices": ["answer", "answer2", "solution", "solution2", "b"],
}


def changed(value: Any) -> Any:
    if isinstance(value, list):
        return [*value[:-1], changed(value[-1])]
    if isinstance(value, dict):
        return {k: v if k in ("role", "from") else f"{v}2" for k, v in value.items()}
    return f"{value}2"


def without_effect(data: dict[str, Any]) -> set[str]:
    """The fields of a row that may have other values without any effect on its example."""
    (example,) = formats.parse([Row(data, "x:1")]).examples
    rows = {name: Row({**data, name: changed(value)}, "x:1") for name, value in data.items()}
    return {name for name, row in rows.items() if formats.parse([row]).examples == (example,)}


def test_the_order_of_detection() -> None:
    assert [f.name for f in FORMATS] == [
        *PAIRED_ORDER,
        *RATED_ORDER,
        *("messages_prompt", "prompt"),
        *PAIRS_ORDER,
        *(name for name in ORDER if name != "text"),
        *("tokens_tags", "tokens_ner_tags", "tokens_labels", "text"),
    ]


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(ORDER, 2)))
def test_a_row_with_the_fields_of_two_formats_has_the_earlier_one(first: str, second: str) -> None:
    """The row is read as one of them in full, not as a mixture; the fields of the other are reported as unused."""
    a, b = BY_NAME[first], BY_NAME[second]
    data = {name: VALUES.get(name, name) for name in (*b.fields, *a.fields)}
    if {"messages", "label"} <= set(data):
        data["messages"] = SAME["labelled_chat"]["messages"]
    if "choices" in data and "solution" not in data:
        data.setdefault("answer", "answer")
    fitting = [f for f in SINGLE if f.fits(data)]
    chosen = detect([Row(data, "x:1")], SINGLE)
    assert chosen == fitting[0]
    assert a in fitting
    assert ORDER.index(chosen.name) <= ORDER.index(first), "or a third format, more specific than both"
    if set(chosen.fields) < set(a.fields):
        pytest.fail(f"{chosen.name} ignores fields that {first} reads")
    parsed = formats.parse([Row(data, "x:1")])
    assert parsed.format == chosen.name
    assert set(parsed.unused) == without_effect(data), "what has no effect is reported, and nothing else"


SYSTEM = {"system": "Be kind."}
CALL = {"name": "f", "arguments": {}}
WITH_SYSTEM = [{"role": "system", "content": "Be brief."}, *SAME["chat"]["messages"]]


@pytest.mark.parametrize(
    ("row", "unused"),
    [
        ({**SAME["instruction"], "input": "i", "context": "c"}, {"context"}),
        ({**SAME["instruction"], "context": "c"}, set()),
        ({**SAME["question"], "context": "c", "article": "r"}, {"article"}),
        ({**SAME["question"], "system": "", "system_prompt": "s"}, set()),
        ({**SAME["question"], **SYSTEM, "system_prompt": "s"}, {"system_prompt"}),
        ({**SAME["chat"], **SYSTEM}, set()),
        ({"messages": WITH_SYSTEM, **SYSTEM}, {"system"}),
        ({**SAME["chat"], "tools": [{"name": "f"}], "functions": [{"name": "g"}]}, {"functions"}),
        ({**SAME["completion"], "history": [["a", "b"]]}, set()),
        (
            {"prompt": [{"role": "user", "content": "q"}], "completion": "a", "history": [["a", "b"]]},
            {"history"},
        ),
        ({"question": "q", "choices": ["a", "b"], "answer": "a", "explanation": "e"}, {"explanation"}),
        ({"question": "q", "choices": ["a", "b"], "answer": "a", "solution": "b"}, {"solution"}),
        ({**SAME["label"], **SYSTEM}, set()),
        ({"text": "q", "labels": ["a"], **SYSTEM}, set()),
        ({"sentence": "q", "label": "a", **SYSTEM}, set()),
        ({"premise": "p", "hypothesis": "h", "label": "a", **SYSTEM}, set()),
        ({**SAME["labelled_chat"], **SYSTEM, "tools": [{"name": "f"}]}, set()),
    ],
    ids=str,
)
def test_of_fields_that_stand_for_one_another_one_is_read(row: dict[str, Any], unused: set[str]) -> None:
    parsed = formats.parse([Row(row, "x:1")])
    assert set(parsed.unused) == unused
    if "system" in row and "system" not in unused and row["system"]:
        assert parsed.examples[0].messages[0] == Message("system", "Be kind.")


@pytest.mark.parametrize(
    ("assistant", "unused"),
    [
        ({"content": "a", "tool_calls": [], "function_call": CALL}, set()),
        ({"content": "a", "tool_calls": [CALL], "function_call": CALL}, {"function_call"}),
        ({"content": "a", "value": "b"}, {"value"}),
        ({"content": "", "value": "b"}, set()),
        ({"content": "a", "refusal": "no"}, {"refusal"}),
        ({"content": "a", "reasoning": "r", "thinking": "t"}, {"thinking"}),
    ],
    ids=str,
)
def test_of_fields_of_a_message_that_stand_for_one_another_one_is_read(
    assistant: dict[str, Any], unused: set[str]
) -> None:
    parsed = formats.parse(
        [Row({"messages": [SAME["chat"]["messages"][0], {"role": "assistant", **assistant}]}, "x:1")]
    )
    assert set(parsed.unused) == {f"messages[].{name}" for name in unused}
    assert bool(parsed.examples[0].messages[-1].tool_calls) == ("function_call" in assistant)
    assert parsed.examples[0].messages[-1].content == ("b" if assistant["content"] == "" else "a")


USE = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "1", "content": "r"}
THOUGHT = {"type": "thinking", "thinking": "hm"}
TEXT = {"type": "text", "text": "t"}


@pytest.mark.parametrize(
    ("role", "part", "code"),
    [
        ("user", USE, "DATA_TOOL_CALL"),
        ("user", THOUGHT, "DATA_FIELD_TYPE"),
        ("system", USE, "DATA_TOOL_CALL"),
        ("system", RESULT, "DATA_TOOL_CALL"),
        ("assistant", RESULT, "DATA_TOOL_CALL"),
    ],
    ids=str,
)
def test_parts_that_a_role_cannot_have(role: str, part: dict[str, Any], code: str) -> None:
    messages = [{"role": "system", "content": "s"}, *SAME["chat"]["messages"]]
    row = {"messages": [{**m, "content": [TEXT, part]} if m["role"] == role else m for m in messages]}
    with pytest.raises(DataError) as caught:
        read(row)
    assert caught.value.code == code


def test_thoughts_in_two_places() -> None:
    def row(thought: str) -> dict[str, Any]:
        answer = {"role": "assistant", "content": [THOUGHT, TEXT], "reasoning_content": thought}
        return {"messages": [SAME["chat"]["messages"][0], answer]}

    assert read(row("hm")).messages[-1].reasoning == "hm"
    with pytest.raises(DataError, match="DATA_FIELD_TYPE"):
        read(row("another"))


def test_the_more_specific_of_two_formats_comes_first() -> None:
    for a, b in itertools.permutations(SINGLE, 2):
        if set(a.fields) < set(b.fields):
            assert ORDER.index(b.name) < ORDER.index(a.name), f"{b.name} is never detected"


@pytest.mark.parametrize("extra", ["prompt", "answer", "output", "summary"])
def test_a_text_beside_an_answer_is_no_document(extra: str) -> None:
    with pytest.raises(DataError) as caught:
        formats.parse([Row({"text": "Long.", extra: "Short."}, "x:1")])
    assert caught.value.code == "DATA_FIELD_MISSING"
    assert "data.columns" in caught.value.problems[0].fix


def test_rows_of_two_formats_are_an_error_unless_the_format_is_set() -> None:
    rows = [Row(SAME["completion"], "x:1"), Row(SAME["question"], "x:2")]
    with pytest.raises(DataError) as caught:
        formats.parse(rows)
    assert caught.value.code == "DATA_MIXED_SCHEMA"
    with pytest.raises(DataError) as caught:
        formats.parse(rows, RowSettings(format="completion"))
    assert (caught.value.code, caught.value.where) == ("DATA_FIELD_MISSING", "x:2")


def test_a_column_that_is_null_everywhere_does_not_exist() -> None:
    """Tables that were joined from several sources have such columns."""
    nothing = {"messages": None, "tools": None, "images": None, "rejected": None}
    assert read({**nothing, **SAME["question"]}).target == "a"
    parsed = formats.parse([Row({"text": "q", "label": None}, "x:1"), Row({"text": "q", "label": "a"}, "x:2")][1:])
    assert parsed.format == "label"
    with pytest.raises(DataError) as caught:
        formats.parse([Row({"text": "q", "label": None}, "x:1"), Row({"text": "q", "label": "a"}, "x:2")])
    assert (caught.value.code, caught.value.where) == ("DATA_EMPTY_TARGET", "x:1")


def test_names_in_another_case_are_read_if_nothing_fits_as_written() -> None:
    assert read({"Prompt": "q", "Completion": "a"}).target == "a"
    assert read({"Prompt": "q", "Completion": "a"}, format="completion").target == "a"
    assert formats.parse([Row({"text": "q", "Label": "a"}, "x:1")]).format == "text", "one fits as written"
    with pytest.raises(DataError):
        formats.parse([Row({"Prompt": "q", "PROMPT": "q", "Completion": "a"}, "x:1")])


# -- what belongs to other methods


@pytest.mark.parametrize(
    "more",
    [
        {"images": ["a.png"]},
        {"chosen": "b", "rejected": "c"},
        {"rejected_response": "c"},
        {"kto_tag": True},
        {"label": False},
        {"label": 1},
        {"label": "true"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["chat", "sharegpt", "completion", "instruction", "question"])
def test_rows_of_another_method_are_refused_unless_the_format_is_set(name: str, more: dict[str, Any]) -> None:
    """A trainer that ignored the field would train on answers that someone rejected."""
    row = Row({**SAME[name], **more}, "x:1")
    with pytest.raises(DataError) as caught:
        formats.parse([row])
    assert (caught.value.code, caught.value.where) == ("DATA_FORM_UNSUPPORTED", "x:1")
    assert formats.parse([row], RowSettings(format=name, as_asked=True)).unused == dict.fromkeys(more, 1)
    dropped = formats.parse([Row(SAME[name], "x:2"), row], RowSettings(drop=frozenset({"DATA_FORM_UNSUPPORTED"})))
    assert [p.where for p in dropped.dropped] == ["x:1"]
    assert len(dropped.examples) == 1


def as_advised(row: dict[str, Any], fix: str, *words: str) -> Chat | Text:
    """The example of a row with the settings that the fix of its error names."""
    advised = [word.rstrip(".,") for word in shlex.split(fix) if word.startswith(("data.columns=", "data.format="))]
    assert advised, fix
    how = prepared.row_settings(config.load(None, [*words, *advised], data__train="x"))
    (example,) = formats.parse([Row(row, "x:1")], how).examples
    return example


USER, GOOD, BAD = ({"role": r, "content": c} for r, c in (("user", "q"), ("assistant", "a"), ("assistant", "b")))
PREFERENCES = {
    "TRL": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "TRL, messages": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "TRL, implicit prompt": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "a prompt and whole conversations": {"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "LLaMA-Factory": {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"},
    "LLaMA-Factory, ShareGPT": {"conversations": [USER], "chosen": GOOD, "rejected": BAD},
    "a question": {"system": "s", "question": "q", "chosen": "a", "rejected": "b"},
    "ms-swift": {"messages": [USER, GOOD], "rejected_response": "b"},
    "ms-swift, messages": {"messages": [USER, GOOD], "rejected_messages": [USER, BAD]},
    "ms-swift, query": {"query": "q", "response": "a", "rejected_response": "b"},
    "OpenAI": {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
    "Anthropic": {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
}
OTHERS = {
    "KTO": {"instruction": "q", "output": "a", "kto_tag": True},
    "KTO, ShareGPT": {**SAME["sharegpt"], "kto_tag": False},
    "TRL, unpaired": {"prompt": "q", "completion": "a", "label": False},
    "images": {**SAME["chat"], "images": ["a.png"]},
}
PAIRED = RowSettings(preference=True)


@pytest.mark.parametrize("name", [*PREFERENCES, *OTHERS])
def test_the_fix_for_rows_of_another_method_works(name: str) -> None:
    row = {**PREFERENCES, **OTHERS}[name]
    with pytest.raises(DataError) as caught:
        read(row)
    assert caught.value.code == "DATA_FORM_UNSUPPORTED"
    fix = caught.value.problems[0].fix
    example = as_advised(row, fix)
    assert [(m.role, m.content) for m in example.messages if m.role != "system"] == [("user", "q"), ("assistant", "a")]
    assert ("train.method=dpo" in fix) is (name in PREFERENCES)
    assert ("train.method=kto" in fix) is ("KTO" in name or "unpaired" in name)


@pytest.mark.parametrize("name", PREFERENCES)
def test_preference_rows_are_read_the_same_whatever_their_format(name: str) -> None:
    parsed = formats.parse([Row(PREFERENCES[name], "x:1")], PAIRED)
    (example,) = parsed.examples
    assert isinstance(example, Chat)
    assert [(m.role, m.content) for m in example.messages if m.role != "system"] == [("user", "q"), ("assistant", "a")]
    assert example.rejected == Message("assistant", "b")
    assert parsed.unused == {}


@pytest.mark.parametrize(
    ("row", "question", "chosen"),
    [
        ({"prompt": "[INST] q", "chosen": "[a", "rejected": "b"}, "[INST] q", "[a"),
        ({"prompt": "q", "chosen": json.dumps([USER, GOOD]), "rejected": json.dumps([USER, BAD])}, "q", "a"),
        ({"prompt": json.dumps([USER]), "chosen": json.dumps(GOOD), "rejected": "b"}, "q", json.dumps(GOOD)),
        ({"prompt": "\n\nHuman: A Assistant: q\n\nAssistant:", "chosen": "a", "rejected": "b"}, "A Assistant: q", "a"),
        ({"prompt": "q", "chosen": {"n": 1}, "rejected": {"n": 2}}, "q", '{"n": 1}'),
    ],
    ids=str,
)  # fmt: skip
def test_texts_that_look_like_something_else(row: dict[str, Any], question: str, chosen: str) -> None:
    (example,) = formats.parse([Row(row, "x:1")], PAIRED).examples
    assert (example.question, example.target) == (question, chosen)


def test_a_prompt_and_earlier_turns_in_fields_of_their_own() -> None:
    row = {"instruction": "q", "input": "z", "history": [["a", "b"]], "system": "s", "chosen": "y", "rejected": "n"}
    (example,) = formats.parse([Row(row, "x:1")], PAIRED).examples
    assert [m.content for m in example.messages] == ["s", "a", "b", "q\n\nz", "y"]
    assert turns(example.messages) == [4], "earlier answers are context"


def test_pairs_that_differ_only_in_their_thoughts() -> None:
    row = {"prompt": "q", "chosen": "<think>x</think>a", "rejected": "<think>y</think>a"}
    (example,) = formats.parse([Row(row, "x:1")], PAIRED).examples
    assert isinstance(example, Chat)
    assert example.rejected != example.messages[-1]


def test_preferences_about_the_last_turn_of_a_conversation() -> None:
    """Earlier answers are context. Tools and the instruction are those of other rows."""
    earlier = [USER, {"role": "assistant", "content": "before"}, {"role": "user", "content": "and then?"}]
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    row = {
        "input": {"messages": earlier, "tools": [tool], "parallel_tool_calls": True},
        "preferred_output": [GOOD],
        "non_preferred_output": [BAD],
    }
    (example,) = formats.parse([Row(row, "x:1")], RowSettings(preference=True, instruction="be brief")).examples
    assert isinstance(example, Chat)
    assert [m.role for m in example.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert turns(example.messages) == [4]
    assert [t["function"]["name"] for t in example.tools] == ["f"]


@pytest.mark.parametrize(
    ("row", "code", "fix"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "DATA_PREFERENCE_EQUAL", "remove the row"),
        ({"prompt": "q", "chosen": "a", "rejected": ""}, "DATA_EMPTY_TARGET", "data.empty=drop"),
        ({"chosen": [USER, GOOD], "rejected": [GOOD, USER, BAD]}, "DATA_TURN_ORDER", "data.invalid=drop"),
        (
            {"chosen": [USER, GOOD], "rejected": [{**USER, "content": "p"}, BAD]},
            "DATA_PROMPT_DIFFERS",
            "let both repeat",
        ),
        ({"prompt": "other", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "DATA_PROMPT_DIFFERS", "let it repeat"),
        ({"chosen": "a", "rejected": "b"}, "DATA_FIELD_MISSING", "write the prompt as 'prompt'"),
        ({"chosen": [USER], "rejected": [USER, BAD]}, "DATA_FIELD_MISSING", "write the prompt as 'prompt'"),
        ({"prompt": "q", "chosen": [GOOD, USER, GOOD], "rejected": [BAD]}, "DATA_TURN_ORDER", "data.invalid=drop"),
        ({"input": "q", "preferred_output": [GOOD], "non_preferred_output": [BAD]}, "DATA_FIELD_TYPE", "messages"),
        ({"prompt": "q", "completion": "a"}, "DATA_FIELD_MISSING", "chosen: your_field, rejected: other_field"),
        ({"response": "a", "rejected_response": "b"}, "DATA_FIELD_MISSING", "write the prompt as 'prompt'"),
        ({"query": "q", "rejected_response": "b"}, "DATA_EMPTY_TARGET", "data.empty=drop"),
    ],
    ids=str,
)
def test_preference_rows_that_compare_nothing_are_refused(row: dict[str, Any], code: str, fix: str) -> None:
    with pytest.raises(DataError) as caught:
        formats.parse([Row(row, "x:1")], PAIRED)
    problem = caught.value.problems[0]
    assert (problem.code, problem.where) == (code, "x:1")
    assert fix in problem.fix


def test_fields_of_a_row_that_is_cleaned_count_as_used() -> None:
    """It is read a second time, without the control characters of a string inside."""
    messages = json.dumps([{"role": "user", "content": "a\x1b"}, {"role": "assistant", "content": "b"}])
    parsed = formats.parse([Row({"messages": messages, "other": "x"}, "f:1")], how=RowSettings(control="strip"))
    assert parsed.unused == {"other": 1}
    assert parsed.examples[0].prompt.messages[0].content == "a"
