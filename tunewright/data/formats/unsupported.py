"""Rows that need another training method or another kind of model, by the fields that show it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tunewright.core.errors import Problem
from tunewright.data.formats.notation import EMPTY
from tunewright.data.sources import Row

# Field -> what a row with it has. To ignore the field would be to train on something else than the row means.
MEDIA = {
    "images": "images",
    "image": "an image",
    "videos": "videos",
    "video": "a video",
    "audios": "audio",
    "audio": "audio",
}
TOKENS = {
    "segments": "segments of text, each with or without loss",
    "input_ids": "token ids instead of text",
}
PREFERENCE = {
    "chosen": "a preferred and a rejected answer",
    "rejected": "a preferred and a rejected answer",
    "rejected_response": "a preferred and a rejected answer",
    "rejected_messages": "a preferred and a rejected answer",
    "preferred_output": "a preferred and a rejected answer",
    "kto_tag": "a rating of the answer",
}
ANNOTATIONS = ("entities", "spans", "ents", "annotations", "relations", "ner_tags")
PREFERRED = ("chosen", "preferred_output")
TARGETS = ("messages", "completion", "output", "response", "answer")  # what a preferred answer may stand for
Columns = Mapping[str, str]
# The format that reads a row if these fields have other names; empty if none does.
Reader = Callable[[Row, Columns], str]
ANSWERS = ("completion", "messages", "conversations", "conversation", "output", "response", "answer")


def problems(rows: Sequence[Row], columns: Columns, reader: Reader) -> dict[str, Problem]:
    """DATA_FORM_UNSUPPORTED for every row that is not supported, by its place. ``columns``: those that are set."""
    return {row.where: problem for row in rows if (problem := _problem(row, columns, reader)) is not None}


def _problem(row: Row, columns: Columns, reader: Reader) -> Problem | None:
    for name in (name for name, value in row.data.items() if value not in EMPTY):
        if name in MEDIA:
            return _unsupported(row, MEDIA[name], name, f"use rows of text; {_ignoring(row, reader)}")
        if name in TOKENS and "text" not in row.data:
            fix = "write the rows as messages, with weight 0 for those that are not trained on."
            return _unsupported(row, TOKENS[name], name, fix)
        if name in PREFERENCE:
            return _unsupported(row, PREFERENCE[name], name, _preferring(row, columns, reader))
    if set(row.data) & {"text", "tokens"} and not set(row.data) & {*ANSWERS, "label", "labels", "prompt"}:
        for name in (n for n in ANNOTATIONS if isinstance(row.data.get(n), list) and row.data[n]):
            return _unsupported(row, "annotations of a text", name, _annotated(row, name, columns, reader))
    if isinstance(row.data.get("label"), bool) and _has_answer(row):
        return _unsupported(row, "a rating of the answer", "label", _ignoring(row, reader))
    return None


def _annotated(row: Row, name: str, columns: Columns, reader: Reader) -> str:
    """The settings that train on the annotations, as JSON."""
    wanted = {**columns, "prompt": "text", "completion": name}
    if not reader(row, wanted):
        return _ignoring(row, reader)
    named = ", ".join(f"{k}: {v}" for k, v in wanted.items())
    return f"data.columns='{{{named}}}' trains on them as JSON; data.format=text ignores them."


def _ignoring(row: Row, reader: Reader) -> str:
    """The settings that read a row without the field."""
    if name := reader(row, {}):
        return f"to ignore the field, set data.format={name}."
    return "rename the other fields with data.columns, or set data.invalid=drop."


def _preferring(row: Row, columns: Columns, reader: Reader) -> str:
    """The settings that train on the preferred answer alone."""
    column = next((c for c in PREFERRED if row.data.get(c) not in EMPTY), None)
    if column is None:
        return _ignoring(row, reader)
    targets = TARGETS if set(row.data) - set(PREFERENCE) else ("messages", "text")
    for target in targets:
        if name := reader(row, {target: column}):
            named = ", ".join(f"{k}: {v}" for k, v in {**columns, target: column}.items())
            return f"data.columns='{{{named}}}' data.format={name} trains on the preferred answers alone."
    return "write rows with the preferred answers alone, or set data.invalid=drop."


def _has_answer(row: Row) -> bool:
    """Whether the row has an answer that a label can rate: its messages may also end with the user."""
    messages = row.data.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        return messages[-1].get("role") == "assistant"
    return any(row.data.get(name) not in EMPTY for name in ANSWERS)


def _unsupported(row: Row, what: str, name: str, fix: str) -> Problem:
    message = f"rows with {what} (field {name!r}) are not supported."
    return Problem("DATA_FORM_UNSUPPORTED", message, row.where, fix)
