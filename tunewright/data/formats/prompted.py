"""Formats whose rows have a prompt and an answer in fields of their own."""

from __future__ import annotations

from typing import Any

from tunewright.core.errors import data_error
from tunewright.data.formats import conversation, tools
from tunewright.data.formats.fields import optional, required, text, type_name
from tunewright.data.formats.row_format import Build, RowFormat, RowSettings
from tunewright.data.messages import Chat, Message
from tunewright.data.sources import Row

CONTEXT = ("system", "history")


def _completion(row: Row, how: RowSettings) -> Chat:
    """Texts, or lists of messages (TRL). Only the completion is trained on."""
    if isinstance(row.data["prompt"], str) and isinstance(row.data["completion"], str):
        turns = [Message("user", required(row, "prompt")), Message("assistant", required(row, "completion"))]
        return conversation.chat([*_context(row), *turns], how, row.where, tools.of_row(row))
    prompt, answer = (_messages(row, name) for name in ("prompt", "completion"))
    messages = [*conversation.untrained(prompt), *answer]
    if (system := optional(row, "system")) and messages[0].role != "system":
        messages = [Message("system", system), *messages]
    return conversation.chat(messages, how, row.where, tools.of_row(row))


def _messages(row: Row, name: str) -> list[Message]:
    value = row.data[name]
    if isinstance(value, str):
        role = "user" if name == "prompt" else "assistant"
        return [Message(role, text(value, name, row.where))]
    return conversation.read(value, name, row.where)


def _pair(prompt: str, answer: str) -> Build:
    """A Chat of two fields, the user message and the answer, after the system message and earlier turns, if any."""

    def build(row: Row, how: RowSettings) -> Chat:
        turns = [Message("user", required(row, prompt)), Message("assistant", required(row, answer))]
        return conversation.chat([*_context(row), *turns], how, row.where, tools.of_row(row))

    return build


def _instruction(answer: str) -> Build:
    """Alpaca: an instruction, and an input that it refers to."""

    def build(row: Row, how: RowSettings) -> Chat:
        order, extra = required(row, "instruction"), optional(row, "input")
        user = f"{order}\n\n{extra}" if extra else order
        turns = [Message("user", user), Message("assistant", required(row, answer))]
        return conversation.chat([*_context(row), *turns], how, row.where, tools.of_row(row))

    return build


def _question(row: Row, how: RowSettings) -> Chat:
    """A question, after the text that it is about, if there is one."""
    about = optional(row, "context") or optional(row, "article")
    user = f"{about}\n\n{required(row, 'question')}" if about else required(row, "question")
    turns = [Message("user", user), Message("assistant", required(row, "answer"))]
    return conversation.chat([*_context(row), *turns], how, row.where)


def _context(row: Row) -> list[Message]:
    """The system message and the history of a row: ``[[question, answer], ...]``."""
    system, history = optional(row, "system"), row.data.get("history") or []
    messages = [Message("system", system)] if system else []
    if not isinstance(history, list) or not all(_is_turn(turn) for turn in history):
        message = f"'history' must be a list of [question, answer], not {type_name(history)}."
        raise data_error("DATA_FIELD_TYPE", message, where=row.where, fix='write [["question", "answer"], ...].')
    for i, turn in enumerate(history):
        for role, value in zip(("user", "assistant"), turn, strict=True):
            messages.append(Message(role, text(value, f"history[{i}]", row.where)))
    return messages


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, list | tuple) and len(turn) == 2


def _instruction_format(name: str, answer: str) -> RowFormat:
    return RowFormat(name, ("instruction", answer), _instruction(answer), optional=("input", *CONTEXT, *tools.FIELDS))


def _pair_format(name: str, prompt: str, answer: str) -> RowFormat:
    return RowFormat(name, (prompt, answer), _pair(prompt, answer), optional=(*CONTEXT, *tools.FIELDS))


FORMATS = (
    RowFormat(
        "completion",
        ("prompt", "completion"),
        _completion,
        optional=(*CONTEXT, *tools.FIELDS),
        lists=("prompt", "completion"),
    ),
    _instruction_format("instruction", "output"),
    _instruction_format("instruction_response", "response"),
    _pair_format("query", "query", "response"),
    _pair_format("response", "prompt", "response"),
    RowFormat("question", ("question", "answer"), _question, optional=("context", "article", *CONTEXT)),
)
