"""Formats whose rows have no answer: documents, which are learned as they are, and prompts, whose answers the model
writes and a grader grades."""

from __future__ import annotations

from dataclasses import replace

from tunewright.core.errors import data_error
from tunewright.data.formats import conversation, tools
from tunewright.data.formats.chats import with_system
from tunewright.data.formats.fields import required
from tunewright.data.formats.row_format import Build, RowFormat, RowSettings, in_string
from tunewright.data.messages import Chat, Message, Text
from tunewright.data.sources import Row

# A row with one of these beside its text is more than a document.
ANSWERS = ("prompt", "instruction", "question", "completion", "output", "response", "answer", "target", "summary")
NO_ANSWER = Message("assistant", "?")  # only the order of messages is checked with it


def _text(row: Row, how: RowSettings) -> Text:
    return Text(required(row, "text"), row.where)


def _prompt(name: str) -> Build:
    """Reads a prompt in a field: a text, or a list of messages that ends with the user. Graders get every field."""

    def build(row: Row, how: RowSettings) -> Chat:
        value = in_string(row.data[name])
        text = isinstance(value, str)
        given = [Message("user", required(row, name))] if text else conversation.read(value, name, row.where)
        before = conversation.untrained(given)
        if before[-1].role == "assistant":
            message = f"{name!r} ends with an answer, and rewards are for answers that the model writes."
            fix = "remove it (other fields can show graders what is right), or choose train.method=sft."
            raise data_error("DATA_TURN_ORDER", message, where=row.where, fix=fix)
        chat = conversation.chat(with_system(row, [*before, NO_ANSWER]), how, row.where, tools.of_row(row))
        item = {key: row.data[key] for key in row.data}
        return replace(chat, messages=(*chat.messages[:-1], Message("assistant", "")), item=item)

    return build


DOCUMENTS = (RowFormat("text", ("text",), _text, excludes=ANSWERS),)
PROMPTS = (
    RowFormat("messages_prompt", ("messages",), _prompt("messages"), rewards=True),
    RowFormat("prompt", ("prompt",), _prompt("prompt"), rewards=True),
)
