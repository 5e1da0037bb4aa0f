"""The JSON Schema in a user's file (`data.answer_schema`), as it is or as OpenAI's `response_format` wraps it."""

from __future__ import annotations

import json
from pathlib import Path

from tunewright.core import small_files
from tunewright.core.errors import DataError, data_error
from tunewright.data.files import json_rows, values
from tunewright.data.files.values import BadValue
from tunewright.data.messages import Json
from tunewright.data.structure import schema
from tunewright.data.structure.schema import Schema

MAX_BYTES = 1 << 20


def load(path: str) -> Schema:
    """Reads the schema. Raises DATA_SCHEMA."""
    value = _unwrapped(_json(path))
    if not isinstance(value, dict):
        raise _problem("the schema is not a JSON object.", path, 'write {"type": "object", "properties": {...}}.')
    if value and not schema.keywords(value):
        message = f"none of the keys {list(value)[:5]} is a keyword of JSON Schema, so it would accept every answer."
        raise _problem(message, path, 'write {"type": "object", "properties": {...}}.')
    if (wrong := schema.invalid(value)) is not None:
        raise _problem(f"not a valid JSON Schema: {wrong}", path, "correct it, or leave data.answer_schema out.")
    return Schema(path, value)


def _json(path: str) -> Json:
    try:
        raw = small_files.read_bytes(Path(path), MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            message = f"the schema is larger than {MAX_BYTES >> 20} MiB, and every answer is checked against it."
            raise _problem(message, path, "leave out long lists of choices.")
        value: Json = json_rows.STRICT.decode(raw.decode("utf-8-sig"))
        values.check(value)
    except OSError as error:
        raise _problem(f"cannot read the schema: {error.strerror}.", path, "check data.answer_schema.") from None
    except json.JSONDecodeError as error:
        raise _problem(f"{error.msg}.", f"{path}:{error.lineno}:{error.colno}", "write it as JSON.") from None
    except BadValue as error:
        raise _problem(error.message, path, "correct it.") from None
    except UnicodeDecodeError:
        raise _problem("the schema is not UTF-8.", path, "save the file as UTF-8.") from None
    except RecursionError:
        raise _problem("the schema is nested too deeply.", path, "correct it.") from None
    return value


def _unwrapped(value: Json) -> Json:
    """The schema inside ``{"type": "json_schema", "json_schema": {"name": ..., "schema": ...}}``, OpenAI's form."""
    for key in ("json_schema", "schema"):
        if isinstance(value, dict) and isinstance(inner := value.get(key), dict) and "properties" not in value:
            value = inner
    return value


def _problem(message: str, where: str, fix: str) -> DataError:
    return data_error("DATA_SCHEMA", message, where=where, fix=fix)
