"""Formats whose rows have a label: of a text, of a pair of texts, of a conversation, or of each word. The label is the
answer.

Labels may be texts, whole numbers, true/false, or lists of them. Numbers get the names of `data.label_names`; several
labels are written in one answer, separated by commas, in one order whatever that of the row: the order of
`data.label_names`, or else of the alphabet.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from tunewright.core.errors import data_error
from tunewright.core.words import first_repeated
from tunewright.data.formats import conversation, tools
from tunewright.data.formats.chats import with_system
from tunewright.data.formats.fields import required, text
from tunewright.data.formats.row_format import Build, Data, RowFormat, RowSettings, in_string
from tunewright.data.messages import Chat, Json, Message
from tunewright.data.sources import Row

PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("text", "text_pair"),
    ("question1", "question2"),
    ("question", "sentence"),
)
TAGS = ("tags", "ner_tags", "labels")
NO_LABEL = "none"  # the answer for an empty list of labels
NUMBER = re.compile(r"-?[0-9]{1,9}(\.0+)?")
WORDS = {"false": 0, "true": 1}


def label(value: Json, name: str, how: RowSettings, where: str) -> str:
    """The answer for a label, or for a number. Raises DATA_FIELD_TYPE, DATA_EMPTY_TARGET or DATA_LABEL."""
    names = how.label_names
    if how.numbers and isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    if isinstance(value, list):
        value = _indices(value, name, names, where)
        given = [label(item, f"{name}[{i}]", how, where) for i, item in enumerate(value)]
        _check_several(given, value, name, where)
        order = {known: place for place, known in enumerate(names)}
        given.sort(key=lambda item: (order.get(item, len(order)), item.casefold(), item))
        return ", ".join(given) or NO_LABEL
    if isinstance(value, bool) or (len(names) == 2 and isinstance(value, str) and value.strip().lower() in WORDS):
        number = WORDS[str(value).strip().lower()]
        return names[number] if len(names) == 2 else str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if names and isinstance(value, str) and NUMBER.fullmatch(value.strip()):  # of a CSV file
        value = int(float(value))
    if isinstance(value, int):
        return _named(value, name, names, where)
    if isinstance(value, float):
        message = f"{name!r} is {value}; a label is a string, a whole number or true/false."
        fix = "train.method=regress learns numbers; otherwise round it, or name its ranges."
        raise data_error("DATA_LABEL", message, where=where, fix=fix)
    return text(value, name, where)


def _indices(value: list[Json], name: str, names: Sequence[str], where: str) -> list[Json]:
    """The labels of a list; of one with a 0 or a 1 for each of the names, the places of the ones."""
    if len(value) < 2 or len(value) != len(names) or not all(isinstance(v, int | float) and v in (0, 1) for v in value):
        return value
    if value in ([0, 1], [1, 0]):
        message = f"{name!r} is {value}, which may be one label of two, or both."
        raise data_error("DATA_LABEL", message, where=where, fix="write the names of the labels.")
    return [i for i, v in enumerate(value) if v]


def _check_several(given: Sequence[str], value: list[Json], name: str, where: str) -> None:
    """Raises DATA_LABEL for labels that could not be distinguished in one answer."""
    fix = "correct the list, or set data.invalid=drop."
    if inner := next((v for v in value if isinstance(v, list)), None):
        message = f"{name!r} contains a list ({str(inner)[:40]})."
    elif twice := first_repeated(given):
        message = f"{name!r} has the label {twice!r} twice."
        if set(given) <= {"0", "1"}:
            fix = "if it has a 0 or a 1 for each label, set data.label_names to the names of all labels, in order."
    elif comma := next((g for g in given if "," in g), None):
        message = f"the label {comma!r} of {name!r} contains a comma, which separates the labels of an answer."
        fix = "write it without the comma, or set data.invalid=drop."
    else:
        return
    raise data_error("DATA_LABEL", message, where=where, fix=fix)


def _named(number: int, name: str, names: Sequence[str], where: str) -> str:
    if not names:
        return str(number)
    if not 0 <= number < len(names):
        message = f"{name!r} is {number}, but data.label_names has {len(names)} names (0 to {len(names) - 1})."
        raise data_error("DATA_LABEL", message, where=where, fix="add the missing name, or correct the label.")
    return names[number]


def _answered(row: Row, how: RowSettings, user: str, field: str) -> Chat:
    answer = label(row.data[field], field, how, row.where)
    messages = with_system(row, [Message("user", user), Message("assistant", answer)])
    return conversation.chat(messages, how, row.where)


def _of(field: str, answer: str) -> Build:
    def build(row: Row, how: RowSettings) -> Chat:
        return _answered(row, how, required(row, field), answer)

    return build


def _of_pair(first: str, second: str) -> Build:
    """The two texts under their names, since their order matters (a premise and a hypothesis)."""

    def build(row: Row, how: RowSettings) -> Chat:
        user = f"{first}: {required(row, first)}\n{second}: {required(row, second)}"
        return _answered(row, how, user, "label")

    return build


def _of_messages(row: Row, how: RowSettings) -> Chat:
    """ms-swift: a conversation that ends with the user, and its label."""
    messages = conversation.read(row.data["messages"], "messages", row.where)
    if messages[-1].role != "user":
        message = f"the messages of a labelled row end with the user, not with {messages[-1].role}."
        fix = "remove the field label or the last message, or set data.format=chat."
        raise data_error("DATA_TURN_ORDER", message, where=row.where, fix=fix)
    answer = Message("assistant", label(row.data["label"], "label", how, row.where))
    messages = with_system(row, [*conversation.untrained(messages), answer])
    return conversation.chat(messages, how, row.where, tools.of_row(row))


def _ends_with_user(data: Data) -> bool:
    messages = data["messages"]
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, dict) and last.get("role") == "user"


def _of_words(field: str) -> Build:
    """One tag for each word; neither contains white space, so that both can be written as one line."""

    def build(row: Row, how: RowSettings) -> Chat:
        texts = [text(value, f"tokens[{i}]", row.where) for i, value in enumerate(_listed(row, "tokens"))]
        tags = [_tag(value, f"{field}[{i}]", how, row.where) for i, value in enumerate(_listed(row, field))]
        if len(texts) != len(tags):
            message = f"the row has {len(texts)} tokens and {len(tags)} {field}."
            raise data_error("DATA_LABEL", message, where=row.where, fix="give each token one tag.")
        if spaced := next((t for t in (*texts, *tags) if len(t.split()) != 1), None):
            message = f"{spaced!r} contains white space, which separates words and tags."
            raise data_error("DATA_LABEL", message, where=row.where, fix="split or join it.")
        messages = [Message("user", " ".join(texts)), Message("assistant", " ".join(tags))]
        return replace(conversation.chat(messages, how, row.where), tagged=True)

    return build


def _listed(row: Row, name: str) -> list[Json]:
    value = in_string(row.data[name])
    if not isinstance(value, list) or not value:
        message = f"{name!r} is {str(value)[:40]!r}; the words of a text and their tags are lists."
        raise data_error("DATA_FIELD_TYPE", message, where=row.where, fix="write both as lists.")
    return value


def _tag(value: Json, name: str, how: RowSettings, where: str) -> str:
    given = label(value, name, how, where)
    names = how.label_names
    if isinstance(value, int | float) and not names:
        fix = "set data.label_names to the names of the tags, in order."
        raise data_error("DATA_LABEL", f"{name!r} is the number {value}, and tags have names.", where=where, fix=fix)
    if names and given not in names:
        message = f"{name!r} is {given!r}, which is not in data.label_names."
        raise data_error("DATA_LABEL", message, where=where, fix="correct the tag, or add the name.")
    return given


# Before the formats of chats, which fit these rows too.
LABELLED_CHAT = RowFormat(
    "labelled_chat", ("messages", "label"), _of_messages, lists=("messages",), condition=_ends_with_user
)
FORMATS = (
    *(RowFormat(f"{a}_{b}", (a, b, "label"), _of_pair(a, b)) for a, b in PAIRS),
    RowFormat("label", ("text", "label"), _of("text", "label")),
    RowFormat("labels", ("text", "labels"), _of("text", "labels")),
    RowFormat("sentence", ("sentence", "label"), _of("sentence", "label")),
    *(RowFormat(f"tokens_{name}", ("tokens", name), _of_words(name), tags=True) for name in TAGS),
)
