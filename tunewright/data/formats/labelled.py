"""Formats whose rows have a label: of a text, or of a pair of texts. The label is the answer.

Labels may be texts, whole numbers, true/false, or lists of them. Numbers get the names of `data.label_names`; several
labels are written in one answer, in the order of the row, separated by commas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunewright.core.errors import data_error
from tunewright.data.formats import conversation
from tunewright.data.formats.fields import required, text
from tunewright.data.formats.row_format import Build, RowFormat, RowSettings
from tunewright.data.messages import Chat, Message
from tunewright.data.sources import Row

PAIRS = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("text1", "text2"), ("text", "text_pair"))


def label(value: Any, name: str, names: Sequence[str], where: str) -> str:
    """The answer for a label. Raises DATA_FIELD_TYPE, DATA_EMPTY_TARGET or DATA_LABEL."""
    if isinstance(value, list):
        parts = [label(item, f"{name}[{i}]", names, where) for i, item in enumerate(value)]
        return ", ".join(parts) if parts else "none"
    if isinstance(value, bool):
        return names[value] if len(names) == 2 else str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) or (names and isinstance(value, str) and value.strip().isdecimal()):
        return _named(int(value), name, names, where)
    if isinstance(value, float):
        message = f"{name!r} is {value}; a label is a text, a whole number or true/false."
        fix = "round it, or name its ranges: this tool does not train regression."
        raise data_error("DATA_LABEL", message, where=where, fix=fix)
    return text(value, name, where)


def _named(number: int, name: str, names: Sequence[str], where: str) -> str:
    if not names:
        return str(number)
    if not 0 <= number < len(names):
        message = f"{name!r} is {number}, but data.label_names has {len(names)} names (0 to {len(names) - 1})."
        raise data_error("DATA_LABEL", message, where=where, fix="add the missing name, or correct the label.")
    return names[number]


def _of(field: str, answer: str) -> Build:
    def build(row: Row, how: RowSettings) -> Chat:
        target = label(row.data[answer], answer, how.label_names, row.where)
        return conversation.chat(_turns(required(row, field), target), how, row.where)

    return build


def _of_pair(first: str, second: str) -> Build:
    """The two texts under their names, since their order matters (a premise and a hypothesis)."""

    def build(row: Row, how: RowSettings) -> Chat:
        user = f"{first}: {required(row, first)}\n{second}: {required(row, second)}"
        return conversation.chat(
            _turns(user, label(row.data["label"], "label", how.label_names, row.where)), how, row.where
        )

    return build


def _turns(user: str, answer: str) -> list[Message]:
    return [Message("user", user), Message("assistant", answer)]


def _of_messages(row: Row, how: RowSettings) -> Chat:
    """ms-swift: a conversation that ends with the user, and its label."""
    messages = conversation.read(row.data["messages"], "messages", row.where)
    if messages[-1].role != "user":
        message = f"the messages of a labelled row end with the user, not with {messages[-1].role}."
        raise data_error(
            "DATA_TURN_ORDER", message, where=row.where, fix="remove the field label, or the last message."
        )
    answer = Message("assistant", label(row.data["label"], "label", how.label_names, row.where))
    return conversation.chat([*conversation.untrained(messages), answer], how, row.where)


FORMATS = (
    *(RowFormat(f"{a}_{b}", (a, b, "label"), _of_pair(a, b)) for a, b in PAIRS),
    RowFormat("label", ("text", "label"), _of("text", "label")),
    RowFormat("labels", ("text", "labels"), _of("text", "labels")),
    RowFormat("sentence", ("sentence", "label"), _of("sentence", "label")),
)
LABELLED_CHAT = RowFormat("labelled_chat", ("messages", "label"), _of_messages, lists=("messages",))
