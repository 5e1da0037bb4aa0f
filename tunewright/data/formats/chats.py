"""Formats whose rows are a list of messages: chat (OpenAI), ShareGPT, and pairs of turns (ms-swift)."""

from __future__ import annotations

from typing import Any

from tunewright.core.errors import data_error
from tunewright.data.formats import conversation, tools
from tunewright.data.formats.fields import optional, text, type_name
from tunewright.data.formats.row_format import RowFormat, RowSettings
from tunewright.data.messages import Chat, Message
from tunewright.data.sources import Row

ROW_FIELDS = ("system", *tools.FIELDS)


def _of_list(name: str) -> Any:
    """Reads the messages of the field ``name``, after the system message of the row's own field."""

    def build(row: Row, how: RowSettings) -> Chat:
        messages = conversation.read(row.data[name], name, row.where)
        if (system := optional(row, "system")) and messages[0].role != "system":
            messages = [Message("system", system), *messages]
        return conversation.chat(messages, how, row.where, tools.of_row(row))

    return build


def _turn_pairs(row: Row, how: RowSettings) -> Chat:
    """``[{"human": ..., "assistant": ...}, ...]``"""
    value = row.data["conversation"]
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        message = f"'conversation' must be a list of objects, not {type_name(value)}."
        fix = 'write [{"human": ..., "assistant": ...}, ...].'
        raise data_error("DATA_FIELD_TYPE", message, where=row.where, fix=fix)
    system = optional(row, "system")
    messages = [Message("system", system)] if system else []
    for i, turn in enumerate(value):
        for field, role in (("human", "user"), ("assistant", "assistant")):
            messages.append(Message(role, text(turn.get(field), f"conversation[{i}].{field}", row.where)))
    return conversation.chat(messages, how, row.where)


FORMATS = (
    RowFormat("chat", ("messages",), _of_list("messages"), optional=ROW_FIELDS, lists=("messages",)),
    RowFormat("sharegpt", ("conversations",), _of_list("conversations"), optional=ROW_FIELDS, lists=("conversations",)),
    RowFormat("turn_pairs", ("conversation",), _turn_pairs, optional=("system",)),
)
