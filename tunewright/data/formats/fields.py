"""Readers of single fields: each returns the value, or raises a DataError with the place and what to do."""

from __future__ import annotations

import json

from tunewright.core.errors import data_error
from tunewright.data.messages import Json
from tunewright.data.sources import Row


def type_name(value: Json) -> str:
    names = {list: "a list", dict: "an object", bool: "true/false", int: "a number", float: "a number", str: "text"}
    return "null" if value is None else names[type(value)]


def text(value: Json, name: str, where: str) -> str:
    """A text that is not blank."""
    if not isinstance(value, str):
        message = f"{name!r} must be text, not {type_name(value)} ({str(value)[:40]!r})."
        raise data_error("DATA_FIELD_TYPE", message, where=where, fix="write it as text, in quotes.")
    if not value.strip():
        raise data_error(
            "DATA_EMPTY_TARGET", f"{name!r} is empty.", where=where, fix="fill it in, or set data.empty=drop."
        )
    return value


def as_text(value: Json) -> str:
    """A text as it is; anything else as JSON, null as an empty text. For results of calls, which programs write."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def required(row: Row, name: str) -> str:
    return text(row.data[name], name, row.where)


def optional(row: Row, *names: str) -> str:
    """The text of the first of the fields that has one; empty if all are absent, null or blank."""
    for name in names:
        value = row.data.get(name)
        if value is not None and not (isinstance(value, str) and not value.strip()):
            return text(value, name, row.where)
    return ""


def decoded(value: Json, name: str, where: str, code: str = "DATA_TOOL_CALL") -> Json:
    """A value, or the JSON that a text contains: tools, arguments and, in tables, messages are written in both ways."""
    if not isinstance(value, str):
        return value
    try:
        decoded_value: Json = json.loads(value)
    except (ValueError, RecursionError):
        message = f"{name} is not valid JSON: {value[:40]!r}."
        raise data_error(code, message, where=where, fix="write it as JSON, or set data.invalid=drop.") from None
    return decoded_value
