"""JSON -> rows: one object per line, an array of objects, or an object whose only value is such an array.

Strict where Python's own reader is lax: duplicate keys, NaN, huge integers and deep nesting are problems.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator

from tunewright.core.errors import DataError, Problem, data_error
from tunewright.core.pii import excerpt
from tunewright.data.files.rows import FileSettings, Item
from tunewright.data.files.values import DROP, FIXES, BadValue, rows_of
from tunewright.data.remedies.change import Change

MAX_DIGITS = 300
MESSAGE = ("role", "from", "human")  # a list of such objects is a conversation, not a list of rows
_VISIBLE = re.compile(r"\S")


def _pairs(items: list[tuple[str, object]]) -> dict[str, object] | BadValue:
    value = dict(items)
    if len(value) == len(items):
        return value
    duplicate = next(k for i, (k, _) in enumerate(items) if k in dict(items[:i]))
    return BadValue("DATA_DUPLICATE_KEY", f"the key {duplicate[:40]!r} occurs twice in one object.")


def _number(text: str) -> float | BadValue:
    value = float(text)
    return value if math.isfinite(value) else BadValue("DATA_NUMBER_NOT_FINITE", f"{text[:30]} is not a finite number.")


def _integer(text: str) -> int | BadValue:
    if len(text) > MAX_DIGITS:
        return BadValue("DATA_NUMBER_TOO_LARGE", f"an integer has {len(text)} digits.")
    return int(text)


def _constant(text: str) -> BadValue:
    return BadValue("DATA_NUMBER_NOT_FINITE", f"{text} is not valid JSON.")


def _decoder(strict: bool) -> json.JSONDecoder:
    """``strict``: control characters must be escaped."""
    return json.JSONDecoder(
        object_pairs_hook=_pairs,
        parse_float=_number,
        parse_int=_integer,
        parse_constant=_constant,
        strict=strict,
    )


STRICT, LENIENT = _decoder(True), _decoder(False)


def items(text: str, name: str, how: FileSettings) -> Iterator[Item]:
    """The rows of a file and the problems in it. Raises DataError if the file as such is not valid."""
    first = _VISIBLE.search(text)
    if first and first[0] == "[":
        yield "the file is one JSON array; its elements are the rows (located as `[index]`)"
        yield from _array(text, name, how)
        return
    key, values = _contained(text, first.start()) if first and first[0] == "{" else ("", [])
    if key:
        yield f"the rows are the elements of {key!r}, the only key of the file's JSON object (located as `[index]`)"
        yield from _elements(values, name, how)
        return
    # Only "\n" ends a row: a JSON string may contain U+2028 and the like, at which str.splitlines would split.
    lines = text.split("\n")
    nonempty = [i for i, line in enumerate(lines) if _VISIBLE.search(line)]
    for i in nonempty:
        yield from _line(lines[i].strip("\r"), f"{name}:{i + 1}", i == nonempty[-1], how)


def _line(text: str, where: str, last: bool, how: FileSettings) -> Iterator[Item]:
    """The row of one line, or what is wrong with it. ``last``: it ends the file, which may have been truncated."""
    try:
        value = STRICT.decode(text)
    except RecursionError:
        yield Problem("DATA_TOO_DEEP", "the row is nested too deeply.", where, FIXES["DATA_TOO_DEEP"])
    except json.JSONDecodeError as error:
        if "control character" in error.msg:
            yield from _unescaped(text, error, where, how)
        else:
            yield Problem(
                "DATA_JSON_INVALID", _around(text, error), f"{where}:{error.pos + 1}", _fix(text, error, last)
            )
    else:
        yield from rows_of(value, where, how)


def _fix(text: str, error: json.JSONDecodeError, last: bool) -> str:
    if last and (error.pos >= len(text.rstrip()) - 1 or "Unterminated" in error.msg):
        return f"the file looks truncated; copy it again, or {DROP}."
    if text[error.pos :].strip() == ",":
        return "remove the comma after each row (sed 's/,$//'), or put [ before the first row and ] after the last."
    return f"{DROP}, or correct the JSON."


def _unescaped(text: str, error: json.JSONDecodeError, where: str, how: FileSettings) -> Iterator[Item]:
    """A line with a control character, such as a tab, that should have been written as an escape."""
    if how.control == "error":
        fix = f"{FIXES['DATA_CONTROL_CHAR'].removesuffix('.')} (tabs are kept)."
        yield Problem("DATA_CONTROL_CHAR", _around(text, error), f"{where}:{error.pos + 1}", fix)
        return
    try:
        value = LENIENT.decode(text)
    except (json.JSONDecodeError, RecursionError):
        fix = f"{DROP}, or correct the JSON."
        yield Problem("DATA_JSON_INVALID", _around(text, error), f"{where}:{error.pos + 1}", fix)
        return
    if ord(text[error.pos]) in (9, 10, 13):
        yield _accepted(where, how)
    yield from rows_of(value, where, how)


def _accepted(where: str, how: FileSettings) -> Change:
    message = "kept an unescaped tab or line break, which is not valid JSON"
    return Change(where, "DATA_CONTROL_CHAR", f"data.control={how.control}", message, dropped=False)


def _around(text: str, error: json.JSONDecodeError) -> str:
    """The message of an error with the text around it, without private data."""
    around = excerpt(text, error.pos)
    return f"{error.msg} at `{around}`." if around else f"{error.msg}."


def _array(text: str, name: str, how: FileSettings) -> Iterator[Item]:
    try:
        values = STRICT.decode(text)
    except RecursionError:
        raise _too_deep(name) from None
    except json.JSONDecodeError as error:
        place = f"{name}:{error.lineno}:{error.colno}"
        control = "control character" in error.msg
        if control and how.control != "error":
            values = _lenient(text, name)
            yield _accepted(place, how)
        else:
            code = "DATA_CONTROL_CHAR" if control else "DATA_JSON_INVALID"
            fix = "correct the array, or write one row per line, so that data.invalid=drop can leave lines out."
            fix = FIXES["DATA_CONTROL_CHAR"] if control else fix
            raise data_error(code, _around(text, error), where=place, fix=fix) from None
    yield from _elements(values, name, how)


def _lenient(text: str, name: str) -> list[object]:
    try:
        values: list[object] = LENIENT.decode(text)
    except RecursionError:
        raise _too_deep(name) from None
    except json.JSONDecodeError as error:
        fix = "correct the array, or write one row per line, so that data.invalid=drop can leave lines out."
        place = f"{name}:{error.lineno}:{error.colno}"
        raise data_error("DATA_JSON_INVALID", _around(text, error), where=place, fix=fix) from None
    return values


def _too_deep(name: str) -> DataError:
    fix = "write one row per line, so that data.invalid=drop can leave lines out."
    return data_error("DATA_TOO_DEEP", "the rows are nested too deeply.", where=name, fix=fix)


def _elements(values: list[object], name: str, how: FileSettings) -> Iterator[Item]:
    for i, value in enumerate(values):
        yield from rows_of(value, f"{name}[{i}]", how)


def _contained(text: str, start: int) -> tuple[str, list[object]]:
    """The key and the rows of a file that is one object with one list of rows; an empty key for any other file."""
    try:
        value, end = STRICT.raw_decode(text, start)
    except (json.JSONDecodeError, RecursionError):
        return "", []
    if not isinstance(value, dict) or len(value) != 1 or _VISIBLE.search(text, end):
        return "", []
    ((key, rows),) = value.items()
    first = rows[0] if isinstance(rows, list) and rows else None
    if not isinstance(first, dict) or any(name in first for name in MESSAGE):
        return "", []
    return key, rows
