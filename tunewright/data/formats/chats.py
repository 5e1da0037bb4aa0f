"""Formats whose rows are a list of messages: OpenAI's, TRL's and Bedrock's (messages), ShareGPT's (conversations),
ms-swift's (conversation), Gemini's (contents)."""

from __future__ import annotations

from tunewright.data.formats import conversation, message, notation, tools
from tunewright.data.formats.fields import optional
from tunewright.data.formats.row_format import Build, RowFormat, RowSettings
from tunewright.data.messages import Chat, Message
from tunewright.data.sources import Row

SYSTEM = ("system", "system_prompt", "systemInstruction", "system_instruction")


def _of_list(name: str) -> Build:
    """Reads the messages of the field ``name``, after the system message of the row's own field."""

    def build(row: Row, how: RowSettings) -> Chat:
        messages = with_system(row, conversation.read(row.data[name], name, row.where))
        return conversation.chat(messages, how, row.where, tools.of_row(row))

    return build


def with_system(row: Row, messages: list[Message]) -> list[Message]:
    """The messages after the row's own system message, if they have none."""
    if messages[0].role == "system":
        return messages
    name = next((name for name in SYSTEM if row.data.get(name) not in notation.EMPTY), None)
    value = row.data[name] if name else None
    if name and isinstance(value, list | dict):  # Bedrock's list of parts, Gemini's message
        item = value if isinstance(value, dict) else {"content": value}
        return [*message.read({**item, "role": "system"}, name, row.where), *messages]
    system = optional(row, *SYSTEM)
    return [Message("system", system), *messages] if system else messages


def _format(name: str, field: str) -> RowFormat:
    return RowFormat(name, (field,), _of_list(field), lists=(field,))


FORMATS = (
    _format("chat", "messages"),
    _format("sharegpt", "conversations"),
    _format("conversation", "conversation"),
    _format("contents", "contents"),
)
