"""Formats whose rows have two answers to one prompt, of which one was chosen and the other rejected.

A row becomes a Chat that ends with the chosen answer and has the rejected one beside it. Nothing but these two is
trained on, whatever the earlier turns are.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

from tunewright.core.errors import data_error
from tunewright.data.files.values import type_name
from tunewright.data.formats import conversation, notation, tools
from tunewright.data.formats.chats import with_system
from tunewright.data.formats.fields import answer, optional, text
from tunewright.data.formats.prompted import history, instruction
from tunewright.data.formats.row_format import Build, RowFormat, RowSettings, in_string
from tunewright.data.messages import Chat, Json, Message
from tunewright.data.sources import Row

HH_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
HH = re.compile(r"\s*Human:")
LISTS = ("messages", "conversations", "conversation", "prompt")
QUESTIONS = ("prompt", "question", "query", "input")
Names = tuple[str, str]  # of the fields of the chosen and the rejected answer


def pair(
    row: Row, how: RowSettings, before: list[Message], chosen: list[Message], rejected: list[Message], names: Names
) -> Chat:
    """The Chat of a prompt and two answers. Either is one message, or a whole conversation that ends with it and begins
    with the prompt. Raises DATA_PROMPT_DIFFERS and DATA_PREFERENCE_EQUAL."""
    (*prompt, good), (*other, bad) = (
        _conversation(before, messages, name, row.where)
        for messages, name in zip((chosen, rejected), names, strict=True)
    )
    prompt, invalid = conversation.untrained(prompt), "set data.invalid=drop"
    if prompt != conversation.untrained(other):
        message = f"{names[0]!r} and {names[1]!r} follow different prompts."
        fix = f"let both repeat the same messages, or {invalid}."
        raise data_error("DATA_PROMPT_DIFFERS", message, where=row.where, fix=fix)
    if replace(good, trained=True) == replace(bad, trained=True):
        message = f"{names[0]!r} and {names[1]!r} are the same answer."
        raise data_error("DATA_PREFERENCE_EQUAL", message, where=row.where, fix=f"remove the row, or {invalid}.")
    messages = with_system(row, [*prompt, replace(good, trained=True)])
    made = conversation.chat(messages, how, row.where, tools.of_row(row))
    return replace(made, rejected=replace(bad, trained=True), margin=_margin(row) if how.margins else None)


def _margin(row: Row) -> float | None:
    """By how much the chosen answer is better, where a row says so."""
    value = row.data.get("margin")
    if value is None or value == "":
        return None
    try:
        number = float("nan") if isinstance(value, bool | list | dict) else float(value)
    except ValueError:
        number = float("nan")
    if not math.isfinite(number) or number < 0:
        message, fix = (
            f"'margin' must be at least 0, not {value!r:.80}.",
            "correct it, or remove the field.",
        )
        raise data_error("DATA_FIELD_TYPE", message, where=row.where, fix=fix)
    return number


def _conversation(before: list[Message], messages: list[Message], name: str, where: str) -> list[Message]:
    """A prompt and its answer."""
    first = next((m.role for m in messages if m.role != "system"), "")
    whole = messages if first == "user" else [*before, *messages]
    if not _begins_with(whole, before):
        message = f"{name!r} is a whole conversation, and does not begin with the row's prompt."
        fix = "let it repeat the prompt, or write the answer alone, or set data.invalid=drop."
        raise data_error("DATA_PROMPT_DIFFERS", message, where=where, fix=fix)
    if len(whole) < 2 or whole[-1].role != "assistant":
        message = f"{name!r} has no prompt." if first == "assistant" else f"{name!r} does not end with an answer."
        fix = "write the prompt as 'prompt' (data.columns maps other names), or as the first messages of both answers."
        raise data_error("DATA_FIELD_MISSING", message, where=where, fix=fix)
    if first == "assistant" and len(messages) > 1:
        message = f"{name!r} has {len(messages)} messages after the prompt; only one answer can be compared."
        raise data_error("DATA_TURN_ORDER", message, where=where, fix="set data.invalid=drop to leave such rows out.")
    return whole


def _begins_with(messages: list[Message], before: list[Message]) -> bool:
    """A system message may be in one of them alone."""
    whole, start = (
        [(m.role, m.content, m.tool_calls) for m in side if m.role != "system"] for side in (messages, before)
    )
    return whole[: len(start)] == start


def _messages(value: Json, name: str, where: str) -> list[Message]:
    """The messages of an answer: a text, a message, or a list, also as JSON. A text that begins with "Human:" is a
    conversation (Anthropic's)."""
    if isinstance(value, str) and HH.match(value):
        return _hh_turns(value, name, where)
    given = in_string(value)
    given = [given] if isinstance(given, dict) and notation.is_messages([given]) else given
    if notation.is_messages(given):
        return conversation.read(given, name, where)
    return [Message("assistant", answer(value, name, where))]


def _hh_turns(value: str, name: str, where: str) -> list[Message]:
    """Without a last heading that nothing follows: a prompt may end with one."""
    _, *parts = HH_TURN.split(value)
    parts = parts[:-2] if parts[-2] == "Assistant" and not parts[-1].strip() else parts
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [Message(roles[who], text(content.strip(), f"{name}, after {who}:", where)) for who, content in turns]


def _prompt(row: Row) -> list[Message]:
    """The messages before the answers, in whichever field a row has them."""
    for name in LISTS:
        value = row.data.get(name)
        if isinstance(value, str) and HH.match(value):
            return _hh_turns(value, name, row.where)
        given = in_string(value)
        if notation.is_messages(given) or (isinstance(value, list) and value):  # `read` says what is wrong in a list
            return conversation.read(given, name, row.where)
    question = instruction(row) if optional(row, "instruction") else optional(row, *QUESTIONS)
    return [*history(row), Message("user", question)] if question else []


def _chosen(row: Row, how: RowSettings) -> Chat:
    """TRL's, LLaMA-Factory's, Anthropic's: fields named chosen and rejected."""
    return _of_fields(row, how, _prompt(row), ("chosen", "rejected"))


def _of_fields(row: Row, how: RowSettings, before: list[Message], names: Names) -> Chat:
    chosen, rejected = (_messages(row.data[name], name, row.where) for name in names)
    return pair(row, how, before, chosen, rejected, names)


def _rejected_response(row: Row, how: RowSettings) -> Chat:
    """ms-swift's: the rejected answer beside a conversation that ends with the chosen one, or beside a response."""
    before, rejected = _prompt(row), _messages(row.data["rejected_response"], "rejected_response", row.where)
    if before and before[-1].role == "assistant":
        return pair(row, how, before[:-1], before[-1:], rejected, ("messages", "rejected_response"))
    chosen = _messages(row.data.get("response"), "response", row.where)
    return pair(row, how, before, chosen, rejected, ("response", "rejected_response"))


def _rejected_messages(row: Row, how: RowSettings) -> Chat:
    """ms-swift's: two whole conversations."""
    return _of_fields(row, how, [], PAIR)


def _preferred_output(row: Row, how: RowSettings) -> Chat:
    """OpenAI's: {"input": {"messages", "tools"}, "preferred_output", "non_preferred_output"}."""
    given = row.data["input"]
    if not isinstance(given, dict) or "messages" not in given:
        message = f"'input' must be an object with messages, not {type_name(given)}."
        fix = 'write {"messages": [{"role": "user", "content": "..."}]}.'
        raise data_error("DATA_FIELD_TYPE", message, where=row.where, fix=fix)
    before = conversation.read(given["messages"], "input.messages", row.where)
    inner = Row({**given, **{name: row.data[name] for name in PREFERRED}}, row.where)
    return _of_fields(inner, how, before, PREFERRED)


PREFERRED = ("preferred_output", "non_preferred_output")
PAIR = ("messages", "rejected_messages")


def _format(
    name: str, fields: tuple[str, ...], build: Build, lists: tuple[str, ...], answers: tuple[str, ...]
) -> RowFormat:
    return RowFormat(name, fields, build, lists=lists, answers=answers, preference=True)


FORMATS = (
    _format("preferred_output", ("input", *PREFERRED), _preferred_output, PREFERRED, PREFERRED[:1]),
    _format("rejected_messages", PAIR, _rejected_messages, PAIR, PAIR[:1]),
    _format("rejected_response", ("rejected_response",), _rejected_response, ("messages",), ("messages", "response")),
    _format("preference", ("chosen", "rejected"), _chosen, ("chosen", "rejected"), ("chosen",)),
)
