"""Formats whose rows have no answer that is written.

Documents are learned as they are. To prompts, the model writes answers, which a grader grades. Pairs of texts are for
search: a query (an anchor), the document that answers it (a positive), and documents that do not (negatives), in fields
as sentence-transformers names them.
"""

from __future__ import annotations

import re
from dataclasses import replace

from tunewright.core.errors import data_error
from tunewright.data.files.values import type_name
from tunewright.data.formats import conversation, tools
from tunewright.data.formats.chats import with_system
from tunewright.data.formats.fields import required, text
from tunewright.data.formats.row_format import Build, RowFormat, RowSettings, in_string
from tunewright.data.messages import Chat, Message, Text
from tunewright.data.sources import Row
from tunewright.data.text import normalised

# A row with one of these beside its text is more than a document.
ANSWERS = ("prompt", "instruction", "question", "completion", "output", "response", "answer", "target", "summary")
NO_ANSWER = Message("assistant", "?")  # only the order of messages is checked with it
PAIR_NAMES = (
    ("anchor", "positive"),
    ("query", "positive"),
    ("query", "document"),
    ("query", "passage"),
    ("query", "answer"),
    ("question", "answer"),
)
GRADES = ("label", "score", "similarity")  # of a pair: whether, or how much, its texts belong together
NUMBERED = re.compile(r"negative_?[0-9]+")


def _text(row: Row, how: RowSettings) -> Text:
    return Text(required(row, "text"), row.where)


def _prompt(name: str) -> Build:
    """Reads a prompt in a field: a text, or a list of messages that ends with the user. Graders get every field."""

    def build(row: Row, how: RowSettings) -> Chat:
        value = in_string(row.data[name])
        plain = isinstance(value, str)
        given = [Message("user", required(row, name))] if plain else conversation.read(value, name, row.where)
        before = conversation.untrained(given)
        if before[-1].role == "assistant":
            message = f"{name!r} ends with an answer, and rewards are for answers that the model writes."
            fix = "remove it (other fields can show graders what is right), or choose train.method=sft."
            raise data_error("DATA_TURN_ORDER", message, where=row.where, fix=fix)
        chat = conversation.chat(with_system(row, [*before, NO_ANSWER]), how, row.where, tools.of_row(row))
        item = {key: row.data[key] for key in row.data}
        return replace(chat, messages=(*chat.messages[:-1], Message("assistant", "")), item=item)

    return build


def _negatives(row: Row) -> list[tuple[str, str]]:
    """The name and the text of every negative: one, several in fields of their own, or a list of them."""
    given = {k: v for k, v in row.data.items() if k == "negative" or NUMBERED.fullmatch(k)}
    named = [(k, text(row.data[k], k, row.where)) for k, v in given.items() if v is not None]
    several = row.data.get("negatives")
    if several is not None and not isinstance(several, list):
        message = f"'negatives' must be a list of texts, not {type_name(several)}."
        raise data_error("DATA_FIELD_TYPE", message, where=row.where, fix='write ["...", "..."].')
    return [*named, *((f"negatives[{i}]", text(v, f"negatives[{i}]", row.where)) for i, v in enumerate(several or []))]


def _pair(query: str, document: str) -> Build:
    def build(row: Row, how: RowSettings) -> Chat:
        asked, right, wrong = required(row, query), required(row, document), _negatives(row)
        for grade in (name for name in GRADES if row.data.get(name) is not None and not how.as_asked):
            message = f"rows of two texts with a {grade} are not supported: train.method=embed learns that they match."
            fix = f"keep the rows whose texts belong together, and set data.format={query}_{document}_pair."
            raise data_error("DATA_FORM_UNSUPPORTED", message, where=row.where, fix=fix)
        for name, other in wrong:
            if normalised(other) == normalised(right):
                message = f"{name!r} is the same text as {document!r}."
                fix = "remove it, or set data.invalid=drop."
                raise data_error("DATA_PREFERENCE_EQUAL", message, where=row.where, fix=fix)
        messages = (Message("user", asked), Message("assistant", right))
        return Chat(messages, row.where, negatives=tuple(other for _, other in wrong))

    return build


DOCUMENTS = (RowFormat("text", ("text",), _text, excludes=ANSWERS),)
PROMPTS = (
    RowFormat("messages_prompt", ("messages",), _prompt("messages"), rewards=True),
    RowFormat("prompt", ("prompt",), _prompt("prompt"), rewards=True),
)
TEXT_PAIRS = tuple(
    RowFormat(f"{query}_{document}_pair", (query, document), _pair(query, document), embedding=True)
    for query, document in PAIR_NAMES
)
