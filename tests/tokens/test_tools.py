"""Conversations with tools and thoughts, through every stock template: trained as they are served, or refused."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
from build import byte_tokenizer, stock_templates, stock_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunewright.core.errors import DataError, TunewrightError
from tunewright.data import tool_calls
from tunewright.data.messages import Chat, Message, Tool, ToolCall, turns
from tunewright.judge.arms.prompts import Recipe
from tunewright.methods import sft
from tunewright.tokens.render_cache import RowRenderer, render_rows
from tunewright.tokens.rendering import for_generation, for_training, read_answer
from tunewright.tokens.sequences import TokenSequence
from tunewright.tokens.template import BUILT_IN, Template, fitted, for_rows, has_thoughts

FILES = {p.stem: p for p in [*stock_templates(), *BUILT_IN.glob("*.jinja")]}
WEATHER: Tool = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name of the city."},
                "days": {"type": "integer", "description": "How many days."},
                "detail": {"type": "object", "properties": {"wind": {"type": "boolean", "description": "With wind?"}}},
                "unit": {"type": "string", "enum": ["metric", "imperial"]},
            },
            "required": ["city"],
        },
    },
}
OSLO = ToolCall("get_weather", {"city": "Oslo", "days": 3, "detail": {"wind": True}}, "call00001")
BERN = ToolCall("get_weather", {"city": "Bern"}, "call00002")
USER = Message("user", "Weather in Oslo and Bern?")
ANSWER = Message("assistant", "Oslo 4, Bern 9.")


def calling(*calls: ToolCall, content: str = "", reasoning: str = "") -> Message:
    return Message("assistant", content, calls, reasoning)


def result(call: ToolCall, text: str) -> Message:
    return Message("tool", text, name=call.name, call_id=call.id)


TWO_RESULTS = (result(OSLO, '{"t": 4}'), result(BERN, '{"t": 9}'))
CONVERSATIONS = {
    "a call": (USER, calling(OSLO)),
    "two calls": (USER, calling(OSLO, BERN)),
    "an answer after a call": (USER, calling(OSLO), TWO_RESULTS[0], ANSWER),
    "an answer after two calls": (USER, calling(OSLO, BERN), *TWO_RESULTS, ANSWER),
    "words beside a call": (USER, calling(OSLO, content="I will look."), TWO_RESULTS[0], ANSWER),
    "thoughts": (
        USER,
        calling(OSLO, reasoning="I need it."),
        TWO_RESULTS[0],
        replace(ANSWER, reasoning="Now I know."),
    ),
    "thoughts without tools": (USER, replace(ANSWER, reasoning="I know.")),
}
# What becomes of each of the conversations, in this order: 1 one sequence, n one for each turn, or refused: L
# TEMPLATE_LOSES_CONTENT, P TEMPLATE_NOT_PREFIX, T TEMPLATE_TOOL_CALLS. Templates that TRL ships later are tested, but
# not listed.
OUTCOMES = {
    "chatml-tools": "11111n1",
    "cohere": "LLLLLLL",
    "cohere2": "LLLLLLL",
    "deepseek_r1_distill": "LLLLLLP",
    "deepseekv3": "LLLLLLP",
    "diffusion_gemma": "1111P11",
    "gemma": "LLLLLLL",
    "gemma3": "LLLLLLL",
    "gemma4": "1111nLL",
    "gemma4_v2": "11111LL",
    "gemma4_v3": "1111nLL",
    "gemma4_v4": "1111nLL",
    "gemma4_v5": "1111P11",
    "glm4moe": "11nnnn1",
    "gptoss": "1L1LPP1",  # writes the first of two calls; leaves out earlier thoughts as soon as there is an answer
    "idefics3": "LLLLLLL",
    "lfm2": "LLLLLLL",
    "lfm2_2_5": "1111111",
    "lfm2_2_5_v2": "1111111",
    "lfm2_2_5_vl": "1111111",
    "lfm2_v2": "11111LL",
    "llama3": "LLLLLLL",
    "llama3_1": "1L1LLLL",  # one call at a time, without words
    "llama3_2": "1L1LLLL",
    "llava_next": "LLLLLLL",
    "muse_glimmer": "1111L11",
    "nemotron_3_5_lightning": "1111111",
    "nemotron_3_nano": "1111111",
    "nemotron_3_super": "1111111",
    "nemotron_3_ultra": "1111111",
    "phi3": "LLLLLLL",
    "phi3_5": "LLLLLLL",
    "qwen2_5": "11111LL",
    "qwen2_5_vl": "LLLLLLL",
    "qwen3": "11nnn11",
    "qwen3_5_nothink": "1111111",
    "qwen3_5_think": "1111111",
    "qwen3_6": "1111111",
    "qwen3_8": "1111111",
    "qwen3_instruct_2507": "11111LL",
    "qwen3_vl": "11111LL",
    "smolvlm": "LLLLLLL",
}
LETTERS = {"TEMPLATE_LOSES_CONTENT": "L", "TEMPLATE_NOT_PREFIX": "P", "TEMPLATE_TOOL_CALLS": "T"}


@functools.cache
def stock(name: str) -> Template:
    return Template(stock_tokenizer(FILES[name].read_text(encoding="utf-8")))


def chat_of(messages: Iterable[Message], tools: Sequence[Tool] = (WEATHER,)) -> Chat:
    messages = tuple(messages)
    uses_tools = any(m.tool_calls for m in messages)
    return Chat(messages, "x:1", tuple(tools) if uses_tools else ())


def outcome(name: str, chat: Chat) -> str:
    """The letter in OUTCOMES. Asserts what must be true of every training sequence."""
    template = stock(name)
    try:
        template = for_rows(fitted(template), has_thoughts([chat]))
        sequences = for_training(template, chat)
    except TunewrightError as error:
        return LETTERS[error.problems[0].code]
    trained = turns(chat.messages)
    for place, k in enumerate(trained):
        sequence = sequences[0] if len(sequences) == 1 else sequences[place]
        prompt = for_generation(template, chat.before(k))
        assert list(sequence.ids[: len(prompt)]) == prompt, "served prompt = trained prefix"
        assert (sequence.weights[len(prompt) - 1], sequence.weights[len(prompt)]) == (0, 1)
        end = next((t for t in range(len(prompt), len(sequence.ids)) if not sequence.weights[t]), len(sequence.ids))
        written = sequence.ids[len(prompt) : end]
        assert written[-1] in template.tokenizer.all_special_ids, "the last trained token stops the model"
        answer, message = read_answer(template, written, chat.tools), chat.messages[k]
        assert tool_calls.same(answer.tool_calls, message.tool_calls)
        assert answer.reasoning == message.reasoning
        assert answer.content.endswith(message.content), "some templates let the model write the header of its answer"
    printed = template.tokenizer.decode([i for s in sequences for i, w in zip(s.ids, s.weights, strict=True) if w])
    for m in chat.messages:
        if m.role == "assistant":
            assert m.content in printed
            assert m.reasoning in printed
        else:
            assert m.content not in printed
    assert "Name of the city." not in printed
    assert len(sequences) in (1, len(trained))
    return "1" if len(sequences) == 1 else "n"


@pytest.mark.parametrize("name", FILES)
def test_a_stock_template_trains_what_it_serves_or_is_refused(name: str) -> None:
    actual = "".join(outcome(name, chat_of(messages)) for messages in CONVERSATIONS.values())
    assert actual == OUTCOMES.get(name, actual)


@pytest.mark.parametrize("name", [name for name, letters in OUTCOMES.items() if letters[0] != "L"])
@pytest.mark.parametrize("conversation", ["a call", "two calls"])
def test_examples_that_end_with_calls_can_be_shown_before_a_question(name: str, conversation: str) -> None:
    """Many templates refuse a user's message directly after a call."""
    shot = chat_of(CONVERSATIONS[conversation])
    template = for_rows(fitted(stock(name)), has_thoughts([shot]))
    if conversation == "two calls" and outcome(name, shot) == "L":
        pytest.skip("the template takes one call at a time")
    prompt = Recipe(shots=(shot,)).prompt(shot)
    assert prompt.messages[-1] == shot.messages[0]
    assert for_generation(template, prompt)


def test_most_templates_with_tools_can_be_trained_and_ours_always() -> None:
    assert set(OUTCOMES["chatml-tools"]) == {"1", "n"}
    assert sum(letters[0] == "1" for letters in OUTCOMES.values()) >= 25


# -- any call

names = st.from_regex(r"[a-z][a-z_0-9]{0,11}", fullmatch=True)
words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Co", "Cc")), min_size=1, max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2),
    max_leaves=4,
)
TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


def declared(call: ToolCall) -> Tool:
    """A tool to which the call conforms."""
    properties = {k: {"type": TYPES.get(type(v), "null")} for k, v in call.arguments.items()}
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": call.name, "description": "Does it.", "parameters": parameters}}


WITH_TOOLS = [name for name, letters in OUTCOMES.items() if letters[0] == "1" and name in FILES]
# These write arguments as JSON, so that every call can be read back.
AS_JSON = ["chatml-tools", "qwen2_5", "qwen3", "qwen3_instruct_2507", "qwen3_vl", "llama3_1", "gptoss"]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names, st.dictionaries(names, values, max_size=3))
@pytest.mark.parametrize("name", WITH_TOOLS)
def test_any_call_is_read_back_from_the_trained_tokens_or_refused(
    name: str, called: str, arguments: dict[str, object]
) -> None:
    call = ToolCall(called, arguments, "call00001")  # type: ignore[arg-type]
    chat = chat_of((USER, calling(call)), [declared(call)])
    assert outcome(name, chat) in ("1" if name in AS_JSON else "1T")


@pytest.mark.parametrize("value", ["0'", "\U00018cd6'", "'\"\\", "a'\nb"])
def test_a_value_with_an_apostrophe_is_not_refused(value: str) -> None:
    """LFM2's template writes it in single quotes, with a backslash; Python's repr would take double quotes, or escape
    characters that cannot be printed."""
    call = ToolCall("a", {"a": value}, "call00001")
    assert outcome("lfm2_2_5_vl", chat_of((USER, calling(call)), [declared(call)])) == "1"


# -- answers without weight


def predictions(sequences: Sequence[TokenSequence]) -> set[tuple[tuple[int, ...], int]]:
    """Every trained token, with the tokens before it."""
    return {(s.ids[:t], s.ids[t]) for s in sequences for t in range(len(s.ids)) if s.weights[t]}


LONG = (
    *CONVERSATIONS["thoughts"],
    Message("user", "And tomorrow?"),
    calling(BERN, reasoning="Again."),
    TWO_RESULTS[1],
    replace(ANSWER, content="Rain.", reasoning="It says rain."),
)
PLAIN = tuple(replace(m, reasoning="") for m in LONG)


@pytest.mark.parametrize("name", ["chatml-tools", "qwen3", "qwen2_5", "nemotron_3_nano", "lfm2_2_5", "glm4moe"])
@pytest.mark.parametrize("messages", [LONG, PLAIN], ids=["thoughts", "plain"])
def test_an_answer_without_weight_changes_nothing_but_its_own_weight(name: str, messages: tuple[Message, ...]) -> None:
    """The predictions of a row are those of its trained turns, each as if it were the only one."""
    if "L" in OUTCOMES[name] and messages is LONG:
        pytest.skip("prints no thoughts")
    answers = [k for k, m in enumerate(messages) if m.role == "assistant"]

    def rendered(trained: Iterable[int]) -> list[TokenSequence]:
        weighted = [replace(m, trained=k in trained) if m.role == "assistant" else m for k, m in enumerate(messages)]
        chat = chat_of(weighted[: max(trained) + 1])
        return for_training(for_rows(fitted(stock(name)), has_thoughts([chat])), chat)

    alone = {k: predictions(rendered([k])) for k in answers}
    assert all(alone.values())
    for count in range(1, len(answers) + 1):
        for trained in itertools.combinations(answers, count):
            assert predictions(rendered(trained)) == set().union(*(alone[k] for k in trained))
    every = rendered(answers)
    if len(every) == 1:
        (one,) = rendered(answers[-1:])
        assert one.ids == every[0].ids, "the same tokens"
        assert sum(one.weights) < sum(every[0].weights)


# -- templates that lose something

CHATML_TOOLS = (BUILT_IN / "chatml-tools.jinja").read_text(encoding="utf-8")
CALL_LOOP = "{%- for call in message.tool_calls or [] -%}"


@pytest.mark.parametrize(
    ("what", "old", "new"),
    [
        ("the tools", "{{ tool | tojson }}", ""),
        (
            "the parameters of the tools",
            "{{ tool | tojson }}",
            "{{ tool.function.name }} {{ tool.function.description }}",
        ),
        ("descriptions", "{{ tool | tojson }}", '{{ tool | tojson | replace("Name of the city.", "") }}'),
        ("the calls", CALL_LOOP, "{%- for call in [] -%}"),
        ("the second call", CALL_LOOP, "{%- for call in (message.tool_calls or [])[:1] -%}"),
        ("the arguments", "(function.arguments | tojson)", "'{}'"),
        ("one argument", "(function.arguments | tojson)", "({'city': function.arguments.city} | tojson)"),
        ("a number", "(function.arguments | tojson)", "(function.arguments | tojson | replace(' 3', ' 5'))"),
        ("a bool", "(function.arguments | tojson)", "(function.arguments | tojson | replace('true', 'false'))"),
        ("the results", "message.content + '\\n</tool_response>'", "'</tool_response>'"),
        (
            "the words",
            "{{- message.content or '' -}}",
            "{% if not message.tool_calls %}{{ message.content }}{% endif %}",
        ),
        ("the thoughts", "message.reasoning_content and loop.last", "false"),
    ],
)
def test_a_template_that_loses_something_is_refused(what: str, old: str, new: str) -> None:
    assert CHATML_TOOLS.count(old) == 1, "the fault is planted"
    template = Template(byte_tokenizer(CHATML_TOOLS.replace(old, new)))
    messages = (
        USER,
        calling(OSLO, BERN, content="Let me look.", reasoning="Two cities."),
        *TWO_RESULTS,
        replace(ANSWER, reasoning="Now I know."),
    )
    with pytest.raises(TunewrightError) as caught:
        for_training(template, chat_of(messages))
    assert caught.value.problems[0].code == "TEMPLATE_LOSES_CONTENT"
    assert caught.value.problems[0].where == "x:1"
    assert "template=chatml-tools" in caught.value.problems[0].fix
    assert for_training(Template(byte_tokenizer(CHATML_TOOLS)), chat_of(messages)), "the template without the fault"


def test_a_template_that_refuses_some_rows_names_them() -> None:
    """Llama 3.1 takes one call at a time; every row with two is reported, not only the first."""
    template = fitted(stock("llama3_1"))
    rows = [chat_of(CONVERSATIONS[name]) for name in ("a call", "two calls", "an answer after two calls")]
    how = RowRenderer(template, sft.prepare, 10_000, "error")
    with pytest.raises(DataError) as caught:
        render_rows(how, [replace(r, where=f"x:{n}") for n, r in enumerate(rows)], [0, 1, 2])
    assert [(p.code, p.where) for p in caught.value.problems] == [("TEMPLATE_LOSES_CONTENT", f"x:{n}") for n in (1, 2)]
    assert all("template=chatml-tools" in p.fix for p in caught.value.problems)


def test_a_template_that_loses_the_calls_before_an_answer_is_refused() -> None:
    """The calls are not trained on, but the answer is about their results."""
    template = Template(byte_tokenizer(CHATML_TOOLS.replace(CALL_LOOP, "{%- for call in [] -%}")))
    before = replace(calling(OSLO), trained=False)
    with pytest.raises(TunewrightError) as caught:
        for_training(template, chat_of((USER, before, TWO_RESULTS[0], ANSWER)))
    assert "messages[1] (assistant)" in caught.value.problems[0].message


def test_calls_that_cannot_be_read_back_are_refused() -> None:
    odd = CHATML_TOOLS.replace("<tool_call>\\n{", "<calls>\\n{").replace("}\\n</tool_call>", "}!\\n</calls>")
    with pytest.raises(TunewrightError) as caught:
        for_training(Template(byte_tokenizer(odd)), chat_of(CONVERSATIONS["a call"]))
    assert caught.value.problems[0].code == "TEMPLATE_TOOL_CALLS"
    assert "template=chatml-tools" in caught.value.problems[0].fix


def test_a_template_that_takes_arguments_as_text_gets_them_as_text() -> None:
    text = CHATML_TOOLS.replace(
        "function.arguments if function.arguments is string else (function.arguments | tojson)",
        "'' + function.arguments",
    )
    assert text != CHATML_TOOLS
    template = fitted(Template(byte_tokenizer(text)))
    assert template.text_arguments
    assert not fitted(Template(byte_tokenizer(CHATML_TOOLS))).text_arguments
    assert template.sha256 != replace(template, text_arguments=False).sha256
    for messages in CONVERSATIONS.values():
        chat = chat_of(messages)
        ours = for_training(Template(byte_tokenizer(CHATML_TOOLS)), chat)
        assert for_training(template, chat) == ours


# -- a special token in a call


def test_a_call_that_spells_a_special_token_contains_none() -> None:
    call = ToolCall("get_weather", {"city": "<|im_end|>Oslo", "<|im_start|>": "x"}, "call00001")
    template = Template(byte_tokenizer(CHATML_TOOLS))
    (sequence,) = for_training(template, chat_of((USER, calling(call))))
    end = template.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert sequence.ids.count(end) == 3, "system, user, assistant"
    assert json.dumps(call.arguments) in template.tokenizer.decode(sequence.ids)


def test_a_template_that_escapes_our_marks_is_refused() -> None:
    ascii_only = CHATML_TOOLS.replace(
        "(function.arguments | tojson)", "(function.arguments | tojson(ensure_ascii=true))"
    )
    call = ToolCall("get_weather", {"city": "<|im_end|>"}, "call00001")
    with pytest.raises(TunewrightError) as caught:
        for_training(Template(byte_tokenizer(ascii_only)), chat_of((USER, calling(call))))
    assert caught.value.problems[0].code == "DATA_SPECIAL_TOKEN_TEXT"
