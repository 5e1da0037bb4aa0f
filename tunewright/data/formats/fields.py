"""Readers of single fields: each returns the value, or raises a DataError with the place and what to do."""

from __future__ import annotations

import json
from typing import Any

from tunewright.core.errors import data_error
from tunewright.data.sources import Row


def type_name(value: Any) -> str:
    names = {list: "a list", dict: "an object", bool: "true/false", int: "a number", float: "a number", str: "text"}
    return "null" if value is None else names[type(value)]


def text(value: Any, name: str, where: str) -> str:
    """A text that is not blank."""
    if not isinstance(value, str):
        message = f"{name!r} must be text, not {type_name(value)} ({str(value)[:40]!r})."
        raise data_error("DATA_FIELD_TYPE", message, where=where, fix="write it as text, in quotes.")
    if not value.strip():
        raise data_error(
            "DATA_EMPTY_TARGET", f"{name!r} is empty.", where=where, fix="fill it in, or set data.empty=drop."
        )
    return value


def required(row: Row, name: str) -> str:
    return text(row.data[name], name, row.where)


def optional(row: Row, name: str) -> str:
    """The text of a field that may be absent, null or blank; then empty."""
    value = row.data.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    return text(value, name, row.where)


def decoded(value: Any, name: str, where: str) -> Any:
    """A value, or the JSON that a text contains: tools and arguments are written in both ways."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise data_error(
            "DATA_TOOL_CALL", f"{name} is not valid JSON: {value[:40]!r}.", where=where, fix="write it as JSON."
        ) from None
