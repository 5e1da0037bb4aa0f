"""Rows that need another training method or another kind of model, by the fields that show it."""

from __future__ import annotations

from collections.abc import Sequence

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
ANSWERS = ("completion", "messages", "conversations", "conversation", "output", "response", "answer")


def problems(rows: Sequence[Row]) -> dict[str, Problem]:
    """DATA_FORM_UNSUPPORTED for every row that is not supported, by its place."""
    return {row.where: problem for row in rows if (problem := _problem(row)) is not None}


def _problem(row: Row) -> Problem | None:
    for name in (name for name, value in row.data.items() if value not in EMPTY):
        if name in MEDIA:
            return _unsupported(row, MEDIA[name], name, "use rows of text; to ignore the field, set data.format.")
        if name in TOKENS and "text" not in row.data:
            fix = "write the rows as messages, with weight 0 for those that are not trained on."
            return _unsupported(row, TOKENS[name], name, fix)
        if name in PREFERENCE:
            column = name if name in ("chosen", "preferred_output") else "chosen"
            fix = (
                f"data.columns='{{completion: {column}}}' data.format=completion trains on the preferred answers alone."
            )
            return _unsupported(row, PREFERENCE[name], name, fix)
    if isinstance(row.data.get("label"), bool) and _has_answer(row):
        fix = "to train on all answers alike, set data.format."
        return _unsupported(row, "a rating of the answer", "label", fix)
    return None


def _has_answer(row: Row) -> bool:
    """Whether the row has an answer that a label can rate: its messages may also end with the user."""
    messages = row.data.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        return messages[-1].get("role") == "assistant"
    return any(row.data.get(name) not in EMPTY for name in ANSWERS)


def _unsupported(row: Row, what: str, name: str, fix: str) -> Problem:
    message = f"rows with {what} (field {name!r}) are not supported."
    return Problem("DATA_FORM_UNSUPPORTED", message, row.where, fix)
