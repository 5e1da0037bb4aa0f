"""Formats whose rows have a prompt and an answer in fields of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tunewright.core.errors import DataError, data_error
from tunewright.core.words import counted
from tunewright.data.files.values import type_name
from tunewright.data.formats import conversation, notation, tools
from tunewright.data.formats.chats import with_system
from tunewright.data.formats.fields import answer, decoded, optional, required, text
from tunewright.data.formats.labelled import label
from tunewright.data.formats.row_format import Build, RowFormat, RowSettings
from tunewright.data.messages import Chat, Json, Message
from tunewright.data.sources import Row
from tunewright.data.text import as_answer

ABOUT = ("context", "article", "passage")  # a text that a question is about


def _chat(row: Row, how: RowSettings, user: str, answer: str) -> Chat:
    turns = [*history(row), Message("user", user), Message("assistant", answer)]
    return conversation.chat(with_system(row, turns), how, row.where, tools.of_row(row))


def history(row: Row) -> list[Message]:
    """The earlier turns of a row: ``[[question, answer], ...]``."""
    history = decoded(row.data.get("history") or [], "history", row.where, "DATA_FIELD_TYPE")
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        message = f"'history' must be a list of [question, answer], not {type_name(history)}."
        raise data_error("DATA_FIELD_TYPE", message, where=row.where, fix='write [["question", "answer"], ...].')
    messages: list[Message] = []
    for i, turn in enumerate(history):
        for role, value in zip(("user", "assistant"), turn if isinstance(turn, list) else (), strict=True):
            messages.append(Message(role, text(value, f"history[{i}]", row.where)))
    return messages


def _completion(row: Row, how: RowSettings) -> Chat:
    """Texts, or lists of messages (TRL). Only the completion is trained on."""
    prompt, given = row.data["prompt"], row.data["completion"]
    if isinstance(prompt, str) and not notation.is_messages(given):
        return _chat(row, how, required(row, "prompt"), answer(given, "completion", row.where))
    before = conversation.untrained(_messages(prompt, "prompt", row.where))
    messages = [*before, *_messages(given, "completion", row.where)]
    return conversation.chat(with_system(row, messages), how, row.where, tools.of_row(row))


def _messages(value: Json, name: str, where: str) -> list[Message]:
    if isinstance(value, str):
        return [Message("user" if name == "prompt" else "assistant", text(value, name, where))]
    if name == "completion" and not notation.is_messages(value):
        return [Message("assistant", answer(value, name, where))]
    return conversation.read(value, name, where)


def _pair(prompt: str, target: str) -> Build:
    """The user message and the answer are one field each."""

    def build(row: Row, how: RowSettings) -> Chat:
        return _chat(row, how, required(row, prompt), answer(row.data[target], target, row.where))

    return build


def instruction(row: Row) -> str:
    """Alpaca: an instruction, and an input that it refers to."""
    return "\n\n".join(filter(None, [required(row, "instruction"), optional(row, "input", "context")]))


def _instruction(target: str) -> Build:
    def build(row: Row, how: RowSettings) -> Chat:
        return _chat(row, how, instruction(row), answer(row.data[target], target, row.where))

    return build


def _reflection(row: Row, how: RowSettings) -> Chat:
    """An instruction, and an answer that is reflected upon and then corrected."""
    user = "\n\n".join(filter(None, [required(row, "instruction"), optional(row, "input")]))
    answer = "\n\n".join(required(row, name) for name in ("output", "reflection", "corrected"))
    return _chat(row, how, user, answer)


def _question(row: Row, how: RowSettings) -> Chat:
    """A question, after the text that it is about, if there is one. Answers may be yes/no or numbers."""
    about = optional(row, *ABOUT)
    user = f"{about}\n\n{required(row, 'question')}" if about else required(row, "question")
    given = row.data["answer"]
    if isinstance(given, dict) or (isinstance(given, list) and given and all(isinstance(v, dict) for v in given)):
        return _chat(row, how, user, answer(given, "answer", row.where))
    if isinstance(given, list):
        raise _answers(given, row.where)
    return _chat(row, how, user, label(given, "answer", how, row.where))


def _answers(given: list[Json], where: str) -> DataError:
    """Several answers are alternatives, of which a row trains one; or there is none."""
    if not given:
        fix = "write the answer, or set data.empty=drop."
        return data_error("DATA_EMPTY_TARGET", "'answer' is an empty list.", where=where, fix=fix)
    message = f"'answer' is a list of {counted(len(given), 'answer')}; a row is trained on one."
    fix = "write the one to train on; for several labels in one answer, use the fields text and labels."
    return data_error("DATA_FIELD_TYPE", message, where=where, fix=fix)


def _choice(row: Row, how: RowSettings) -> Chat:
    """A question with choices. The answer is one of the choices, its letter, or its place, counted from 0; or else an
    explanation in words of its own."""
    choices = row.data["choices"]
    if not isinstance(choices, list) or not choices:
        message = f"'choices' must be a list of strings, not {type_name(choices)}."
        raise data_error("DATA_FIELD_TYPE", message, where=row.where, fix='write ["...", "..."].')
    texts = [text(c, f"choices[{i}]", row.where) for i, c in enumerate(choices)]
    user = "\n".join([required(row, "question"), *(f"- {t}" for t in texts)])
    name = next((n for n in CHOICE_ANSWERS if row.data.get(n) not in (None, "")), CHOICE_ANSWERS[0])
    given = row.data.get(name)
    answer = text(given, name, row.where) if name == "explanation" else _chosen(given, name, texts, row.where)
    return _chat(row, how, user, answer)


CHOICE_ANSWERS = ("answer", "solution", "explanation")
LETTER = re.compile(r"\(?([A-Za-z])[).:]?")


def _chosen(given: Json, name: str, choices: Sequence[str], where: str) -> str:
    """The choice that an answer is, as the prompt shows it. Raises DATA_LABEL, DATA_FIELD_TYPE or DATA_EMPTY_TARGET."""
    words = str(given).lower() if isinstance(given, bool) else given
    place = int(words) if isinstance(words, int) or (isinstance(words, float) and words.is_integer()) else None
    if place is None:
        words = text(words, name, where).strip()
        if same := [c for c in choices if words == c.strip()] or [
            c for c in choices if as_answer(words) == as_answer(c)
        ]:
            return same[0]
        letter = LETTER.fullmatch(words)
        place = ord(letter[1].upper()) - ord("A") if letter else int(words[:9]) if words.isdecimal() else None
    if place is None or not 0 <= place < len(choices):
        message = f"{name!r} is {str(given)[:40]!r}, which is none of the {len(choices)} choices."
        fix = f"write a choice, its letter, or its place (0 to {len(choices) - 1}); a free answer is an 'explanation'."
        raise data_error("DATA_LABEL", message, where=where, fix=fix)
    return choices[place]


def _instruction_format(name: str, answer: str) -> RowFormat:
    return RowFormat(name, ("instruction", answer), _instruction(answer))


def _pair_format(name: str, prompt: str, answer: str) -> RowFormat:
    return RowFormat(name, (prompt, answer), _pair(prompt, answer))


LISTS = ("prompt", "completion")
FORMATS = (
    RowFormat("completion", LISTS, _completion, lists=LISTS),
    RowFormat("reflection", ("instruction", "output", "reflection", "corrected"), _reflection),
    _instruction_format("instruction", "output"),
    _instruction_format("instruction_response", "response"),
    _instruction_format("revision", "revision"),
    _pair_format("query", "query", "response"),
    _pair_format("response", "prompt", "response"),
    _pair_format("generation", "prompt", "generation"),
    RowFormat("choice", ("question", "choices"), _choice, answers=("choices", *CHOICE_ANSWERS)),
    RowFormat("question", ("question", "answer"), _question),
    _pair_format("question_response", "question", "response"),
    _pair_format("problem", "problem", "solution"),
    _pair_format("summary", "article", "summary"),
    _pair_format("message_pair", "message_1", "message_2"),
    _pair_format("input_output", "input", "output"),
)
