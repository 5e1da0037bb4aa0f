"""Formats whose rows have one answer, which is rated: desirable or undesirable.

They are the formats of chats and of prompts with a completion, with one more field. Only the last answer is rated, so
nothing but it is trained on. Rows without that field, or with a label instead of an answer, are of other formats.
"""

from __future__ import annotations

from dataclasses import replace

from tunewright.core.errors import data_error
from tunewright.core.pii import excerpt
from tunewright.data.formats import chats, conversation, prompted, unsupported
from tunewright.data.formats.row_format import Build, RowFormat, RowSettings
from tunewright.data.messages import Chat, Json
from tunewright.data.sources import Row


def rating(value: Json, name: str, where: str) -> bool:
    """Whether an answer is desirable. Raises DATA_LABEL_NOT_BOOLEAN."""
    if (given := unsupported.rating(value)) is not None:
        return given
    message = f"{name!r} is {excerpt(str(value), 0, 40)!r}, which says neither true nor false."
    fix = "write true for a desirable answer and false for an undesirable one, or set data.invalid=drop."
    raise data_error("DATA_LABEL_NOT_BOOLEAN", message, where=where, fix=fix)


def _rated(build: Build, name: str) -> Build:
    def rated(row: Row, how: RowSettings) -> Chat:
        desirable, example = rating(row.data[name], name, row.where), build(row, how)
        assert isinstance(example, Chat)
        *before, last = example.messages
        return replace(example, messages=(*conversation.untrained(before), last), desirable=desirable)

    return rated


def _format(prefix: str, name: str, field: str) -> RowFormat:
    f = next(f for f in (*chats.FORMATS, *prompted.FORMATS) if f.name == name)
    answers = f.answers or f.fields[-1:]
    build = _rated(f.build, field)
    return RowFormat(f"{prefix}_{name}", (*f.fields, field), build, lists=f.lists, answers=answers, rated=True)


# TRL's and ms-swift's; LLaMA-Factory's.
FORMATS = (
    *(_format("rated", name, "label") for name in ("completion", "chat")),
    *(_format("tagged", name, "kto_tag") for name in ("chat", "sharegpt", "instruction")),
)
