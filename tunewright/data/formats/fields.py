"""Readers of single fields: each returns the value, or raises a DataError with the place and what to do."""

from __future__ import annotations

import json

from tunewright.core.errors import data_error
from tunewright.core.pii import excerpt
from tunewright.data.files import json_rows, values
from tunewright.data.files.rows import Control
from tunewright.data.files.values import BadValue, type_name
from tunewright.data.formats import notation
from tunewright.data.messages import Json
from tunewright.data.sources import Row

SYNTHETIC = "synthetic"  # the field of rows that a model wrote
NOT_SYNTHETIC, UNNAMED = ("", "false", "no", "0"), "a model without a name"


def text(value: Json, name: str, where: str) -> str:
    """A text that is not blank."""
    if value is not None and not isinstance(value, str):
        message = f"{name!r} must be text, not {type_name(value)} ({excerpt(str(value), 0, 40)!r})."
        raise data_error("DATA_FIELD_TYPE", message, where=where, fix="write it as text, in quotes.")
    if value is None or not value.strip():
        raise data_error(
            "DATA_EMPTY_TARGET", f"{name!r} is empty.", where=where, fix="fill it in, or set data.empty=drop."
        )
    return value


def answer(value: Json, name: str, where: str) -> str:
    """An answer: a text, or an object or a list, which is written as JSON."""
    if not isinstance(value, dict | list):
        return text(value, name, where)
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError as error:  # of a column of Arrow's: a date, bytes
        message, fix = f"{name!r} is not JSON: {error}.", "write such values as text."
        raise data_error("DATA_FIELD_TYPE", message, where=where, fix=fix) from None


def as_text(value: Json) -> str:
    """A text as it is; anything else as JSON, null as an empty text. For results of calls, which programs write."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def cleaned_row(row: Row, control: Control) -> Row:
    """A row without control characters and lone surrogates, also in the JSON that its strings contain."""
    return Row({key: cleaned(value, control) for key, value in row.data.items()}, row.where)


def cleaned(value: Json, control: Control) -> Json:
    if isinstance(value, BadValue):
        raise value
    if isinstance(value, list):
        return [cleaned(item, control) for item in value]
    if isinstance(value, dict):
        return {values.clean_text(key, control)[0]: cleaned(inner, control) for key, inner in value.items()}
    if not isinstance(value, str):
        return value
    bare = values.clean_text(value, control)[0]
    if "\\u" not in bare or bare.lstrip()[:1] not in ("[", "{"):
        return bare
    try:
        inside = json_rows.STRICT.decode(bare)
        clean = cleaned(inside, control)
    except (ValueError, RecursionError):
        return bare
    return bare if clean == inside else json.dumps(clean, ensure_ascii=False)


def required(row: Row, name: str) -> str:
    return text(row.data[name], name, row.where)


def optional(row: Row, *names: str) -> str:
    """The text of the first of the fields that has one; empty if all are absent, null or blank."""
    for name in names:
        value = row.data.get(name)
        if value is not None and not (isinstance(value, str) and not value.strip()):
            return text(value, name, row.where)
    return ""


def trained(item: dict[str, Json], name: str, where: str) -> bool | None:
    """Whether a message, or a part of one, is a target: `weight` (OpenAI), `train` (Axolotl) or `loss` (ms-swift); None
    if it does not say. Raises DATA_WEIGHT."""
    given = {field: item[field] for field in notation.TRAINED if item.get(field) is not None}
    for field, value in given.items():
        if value not in (0, 1):
            message = f"{name}.{field} is {value!r}; a message is trained on (1, true) or not (0, false)."
            raise data_error("DATA_WEIGHT", message, where=where, fix="write 0 or 1, or set data.invalid=drop.")
    flags = set(map(bool, given.values()))
    if len(flags) > 1:
        message = f"{' and '.join(given)} of {name} disagree on whether it is trained on."
        raise data_error("DATA_WEIGHT", message, where=where, fix="give it one weight, or set data.invalid=drop.")
    return next(iter(flags), None)


def decoded(value: Json, name: str, where: str, code: str = "DATA_TOOL_CALL") -> Json:
    """A value, or the JSON that a string contains: tools, arguments and, in tables, messages are written in both ways.
    Raises what a file with that value would raise."""
    if not isinstance(value, str):
        return value
    try:
        decoded_value: Json = json_rows.STRICT.decode(value)
        values.check(decoded_value)
    except BadValue as error:
        fix = values.FIXES[error.code]
        raise data_error(error.code, f"{name}: {error.message}", where=where, fix=fix) from None
    except (ValueError, RecursionError) as error:
        wrong = "nested too deeply" if isinstance(error, RecursionError) else "not valid JSON"
        message = f"{name} is {wrong}: {excerpt(value, 0, 40)!r}."
        raise data_error(code, message, where=where, fix="write it as JSON, or set data.invalid=drop.") from None
    return decoded_value


def author(row: Row) -> str:
    """The model that wrote the answer, from the field `synthetic`, which `tunewright synthesize` writes; empty if the
    row has none, or a value that denies it. Raises DATA_FIELD_TYPE."""
    value = row.data.get(SYNTHETIC)
    if isinstance(value, dict):
        model, endpoint = value.get("model") or UNNAMED, value.get("endpoint")
        return f"{model} at {endpoint}" if endpoint else str(model)
    if isinstance(value, list | float):
        message = f"{SYNTHETIC!r} must say which model wrote the answer, and is {type_name(value)}."
        fix = 'write {"model": NAME}, a name, true or false.'
        raise data_error("DATA_FIELD_TYPE", message, where=row.where, fix=fix)
    words = str("" if value is None else value).strip()
    return "" if words.lower() in NOT_SYNTHETIC else UNNAMED if words.lower() in ("true", "yes", "1") else words
