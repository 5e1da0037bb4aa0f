"""Rows with another answer than their own, in the fields that they had, so that the same settings read both."""

from __future__ import annotations

from collections.abc import Mapping

from tunewright.data.formats.fields import SYNTHETIC
from tunewright.data.formats.row_format import Data, RowFormat, in_string
from tunewright.data.messages import Example, Json, Message

# Formats whose last field is the answer, as it is written. In others it is one of several fields, or one of several
# turns in a notation of their own.
IN_A_FIELD = (
    *("completion", "instruction", "instruction_response", "query", "response", "generation", "question"),
    *("question_response", "problem", "summary", "message_pair", "input_output"),
)


def answered(row: Data, row_format: RowFormat, example: Example, answer: str, columns: Mapping[str, str]) -> Data:
    """The row with ``answer``; for formats in which it has no field of its own, as messages. ``columns``: as in
    `data.columns`."""
    kept = {name: value for name, value in row.items() if name != SYNTHETIC}
    own = [columns.get(name, name) for name in row_format.fields]
    if row_format.rewards and row_format.name == "prompt" and isinstance(in_string(row[own[0]]), str):
        return {**kept, columns.get("completion", "completion"): answer}
    if row_format.name in IN_A_FIELD or _is_labelled(row_format):
        value: Json = [Message("assistant", answer).to_json()] if isinstance(row[own[-1]], list) else answer
        return {**kept, own[-1]: answer if _is_labelled(row_format) else value}
    messages: list[Json] = [m.to_json() for m in (*example.prompt.messages, Message("assistant", answer))]
    fields = {columns.get(name, name) for name in (*row_format.fields, *row_format.answers, "messages")}
    return {**{name: value for name, value in kept.items() if name not in fields}, "messages": messages}


def _is_labelled(row_format: RowFormat) -> bool:
    return row_format.fields[-1] in ("label", "labels")
