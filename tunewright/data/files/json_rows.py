"""JSON -> rows: one object per line, an array of objects, an object that contains one such array, or columns.

Strict where Python's own reader is lax: duplicate keys, NaN, huge integers and deep nesting are problems.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator

from tunewright.core.errors import DataError, Problem, data_error
from tunewright.core.pii import excerpt
from tunewright.core.words import first_repeated
from tunewright.data.files.rows import FileSettings, Item
from tunewright.data.files.values import DROP, FIXES, BadValue, rows_of
from tunewright.data.remedies.change import Change

MAX_DIGITS = 300
FEWEST = 10  # values in a column: with fewer, the object is a row
MESSAGE = ("role", "from", "human")  # a list of such objects is a conversation, not a list of rows
NEWLINE = "\n"
_VISIBLE = re.compile(r"\S")


def _pairs(items: list[tuple[str, object]]) -> dict[str, object] | BadValue:
    value = dict(items)
    if len(value) == len(items):
        return value
    duplicate = first_repeated([k for k, _ in items]) or ""
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
    if first and first[0] == "[" and not _begins_with_row(text):
        yield "the file is one JSON array; its elements are the rows (located as `[index]`)"
        yield from _array(text, name, how)
        return
    value = _whole(text, first.start()) if first and first[0] == "{" else None
    what, values = _contained(value) or ("", []) if value else ("", [])
    if what:
        yield f"{what} (located as `[index]`)"
        yield from _elements(values, name, how)
        return
    if first and first[0] == "{" and (rows := _pretty(text, name)):
        yield "rows are written on several lines"
        for line, row in rows:
            yield from rows_of(row, f"{name}:{line}", how)
        return
    text = text if NEWLINE in text else text.replace("\r", NEWLINE)  # line ends of old Macs
    # Only "\n" ends a row: a JSON string may contain U+2028 and the like, at which str.splitlines would split.
    lines = text.split(NEWLINE)
    nonempty = [i for i, line in enumerate(lines) if _VISIBLE.search(line)]
    for i in nonempty:
        yield from _line(lines[i].strip("\r\ufeff"), f"{name}:{i + 1}", i == nonempty[-1], how)


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


def _begins_with_row(text: str) -> bool:
    """Whether the first line is an array and more follow: each is a row that should be an object."""
    first, _, rest = text.lstrip().partition(NEWLINE)
    if not rest.strip():
        return False
    with contextlib.suppress(json.JSONDecodeError, RecursionError):
        return isinstance(STRICT.decode(first.strip()), list)
    return False


def _whole(text: str, start: int) -> dict[str, object] | None:
    """The object that the file is; None if it is none, or more."""
    try:
        value, end = STRICT.raw_decode(text, start)
    except (json.JSONDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) and not _VISIBLE.search(text, end) else None


def _contained(value: dict[str, object]) -> tuple[str, list[object]] | None:
    """How the rows are contained in a file that is one object, and the rows; None if the object is a row itself."""
    lists = {k: v for k, v in value.items() if isinstance(v, list) and v and isinstance(v[0], dict)}
    others = [v for k, v in value.items() if k not in lists]
    ((key, rows),) = lists.items() if len(lists) == 1 else (("", []),)
    is_row = any(name in rows[0] for name in MESSAGE) if key else True
    if not is_row and not any(isinstance(v, list | dict) for v in others) and (not others or len(rows) >= FEWEST):
        return f"the rows are the elements of {key!r} in the file's JSON object", rows
    columns = [list(v.values()) if isinstance(v, dict) else v for v in value.values()]
    sizes = {len(c) if isinstance(c, list) else 0 for c in columns}
    if len(columns) > 1 and len(sizes) == 1 and min(sizes) >= FEWEST and not lists:
        table: list[object] = [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
        return "the file is one JSON object of columns", table
    return None


def _pretty(text: str, name: str) -> list[tuple[int, object]]:
    """(line, value) of values that are written on several lines each, one after another; empty for any other file."""
    rows: list[tuple[int, object]] = []
    at, line = 0, 1
    try:
        while start := _VISIBLE.search(text, at):
            line += text.count(NEWLINE, at, start.start())
            value, at = STRICT.raw_decode(text, start.start())
            if not rows and NEWLINE not in text[start.start() : at]:
                return []
            rows.append((line, value))
            line += text.count(NEWLINE, start.start(), at)
    except RecursionError:
        return []
    except json.JSONDecodeError as error:
        if not rows:
            return []
        fix = "correct it, or write one row per line, so that data.invalid=drop can leave lines out."
        place = f"{name}:{error.lineno}:{error.colno}"
        raise data_error("DATA_JSON_INVALID", _around(text, error), where=place, fix=fix) from None
    return rows
