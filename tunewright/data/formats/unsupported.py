"""Rows that need another training method or another kind of model, by the fields that show it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tunewright.core.errors import Problem
from tunewright.data.formats.notation import EMPTY
from tunewright.data.messages import Json
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
PAIR = ("chosen", "rejected", "rejected_response", "rejected_messages", "preferred_output")
RATING = "kto_tag"
ANNOTATIONS = ("entities", "spans", "ents", "annotations", "relations", "ner_tags")
Columns = Mapping[str, str]
# The format that reads a row if these fields have other names; empty if none does.
Reader = Callable[[Row, Columns], str]
BY_SFT, BY_THIS = " by train.method=sft", " by this training method"
RATED = "a rating of the answer"
RATINGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
ANSWERS = ("completion", "messages", "conversations", "conversation", "output", "response", "answer")


@dataclass(frozen=True)
class Wanted:
    """Whether rows may have a chosen and a rejected answer, and whether they may have a rated one."""

    pairs: bool
    ratings: bool


def problems(rows: Sequence[Row], columns: Columns, reader: Reader, wanted: Wanted) -> dict[str, Problem]:
    """DATA_FORM_UNSUPPORTED for every row that is not supported, by its place. ``columns``: those that are set."""
    return {row.where: problem for row in rows if (problem := _problem(row, columns, reader, wanted)) is not None}


def _problem(row: Row, columns: Columns, reader: Reader, wanted: Wanted) -> Problem | None:
    for name in (name for name, value in row.data.items() if value not in EMPTY):
        if name in MEDIA:
            return _unsupported(row, MEDIA[name], name, f"use rows of text; {_ignoring(row, reader)}")
        if name in TOKENS and "text" not in row.data:
            fix = "write the rows as messages, with weight 0 for those that are not trained on."
            return _unsupported(row, TOKENS[name], name, fix)
        if name in PAIR and not wanted.pairs:
            return _unsupported(row, "a chosen and a rejected answer", name, _choosing(row, reader), BY_SFT)
        if name == RATING and not wanted.ratings:
            return _unsupported(row, RATED, name, _rated(row, name, reader), BY_THIS)
    if set(row.data) & {"text", "tokens"} and not set(row.data) & {*ANSWERS, "label", "labels", "prompt"}:
        for name in (n for n in ANNOTATIONS if isinstance(row.data.get(n), list) and row.data[n]):
            return _unsupported(row, "annotations of a text", name, _annotated(row, name, columns, reader))
    if isinstance(row.data.get("tokens"), list) and isinstance(row.data.get("tags"), list):
        return _unsupported(row, "a tag for each word", "tags", "train.method=tag learns them.", BY_THIS)
    if not wanted.ratings and rating(row.data.get("label")) is not None and _has_answer(row):
        return _unsupported(row, RATED, "label", _rated(row, "label", reader), BY_THIS)
    return None


def _annotated(row: Row, name: str, columns: Columns, reader: Reader) -> str:
    """The settings that train on the annotations: as tags of words, or as JSON."""
    if name == "ner_tags" and isinstance(row.data.get("tokens"), list):
        return "train.method=tag learns them."
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


def _choosing(row: Row, reader: Reader) -> str:
    """The settings that train on both answers, or on the chosen one alone."""
    alone = f", data.format={name} on the chosen one alone" if (name := reader(row, {})) else ""
    return f"train.method=dpo trains on both answers{alone}."


def _rated(row: Row, name: str, reader: Reader) -> str:
    """The settings that train on answers of both kinds, on the desirable ones alone, or on all as they are."""
    bare = Row({k: v for k, v in row.data.items() if k != name}, row.where)
    fix = "train.method=kto trains on desirable and undesirable answers"
    fix += f", data.format={alone} on the desirable ones alone" if (alone := reader(row, {})) else ""
    return f"{fix}; if it is no rating, set data.format={plain}." if (plain := reader(bare, {})) else f"{fix}."


def rating(value: Json) -> bool | None:
    """A boolean, also as 1 or 0 or as a word; None if the value is none."""
    return RATINGS.get(str(value).strip().lower()) if isinstance(value, bool | int | float | str) else None


def _has_answer(row: Row) -> bool:
    """Whether the row has an answer that a label can rate: its messages may also end with the user."""
    messages = row.data.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        return messages[-1].get("role") == "assistant"
    return any(row.data.get(name) not in EMPTY for name in ANSWERS)


def _unsupported(row: Row, what: str, name: str, fix: str, by: str = "") -> Problem:
    message = f"rows with {what} (field {name!r}) are not supported{by}."
    return Problem("DATA_FORM_UNSUPPORTED", message, row.where, fix)
