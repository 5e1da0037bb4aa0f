"""Values of JSON, CSV and Parquet -> Rows: what Python's own readers let pass is a problem with a place, or is changed
if a setting asks for it.

Readers put a `BadValue` where they meet one, so that it costs one row, not the file.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

from tunewright.core.errors import Problem
from tunewright.data.files.rows import Control, FileSettings, Item, Row
from tunewright.data.remedies.change import Change

MAX_DEPTH = 100
ROLES = {"role", "from"}
BAD = re.compile("[\x00-\x08\x0b\x0e-\x1f\ud800-\udfff]")
DROP = "set data.invalid=drop to leave such rows out"
STRIP = "set data.control=strip to remove such characters, or data.control=space to replace them by spaces."
FIXES = {
    "DATA_DUPLICATE_KEY": f"{DROP}.",
    "DATA_NUMBER_NOT_FINITE": f"{DROP}, or write null.",
    "DATA_NUMBER_TOO_LARGE": f"{DROP}, or write long digit strings as text.",
    "DATA_TOO_DEEP": f"{DROP}.",
    "DATA_UNICODE": STRIP,
    "DATA_CONTROL_CHAR": STRIP,
}


class BadValue(ValueError):
    """A value that a row must not contain."""

    def __init__(self, code: str, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(message)


def rows_of(value: object, where: str, how: FileSettings) -> Iterator[Item]:
    """The row of a value, after what was changed in it; or what is wrong with it."""
    removed: Counter[str] = Counter()
    try:
        clean = _clean(value, how.control, removed)
    except BadValue as error:
        yield Problem(error.code, error.message, where, FIXES[error.code])
        return
    if isinstance(clean, list) and clean and all(isinstance(m, dict) and ROLES & set(m) for m in clean):
        clean = {"messages": clean}  # a row that is its list of messages
    if not isinstance(clean, dict):
        message = f"a row must be a JSON object, not {type_name(value)}."
        yield Problem("DATA_ROW_NOT_OBJECT", message, where, f'{DROP}, or write {{"field": ...}}.')
        return
    yield from changes_of(removed, where, how.control)
    yield Row(clean, where)


def clean_text(text: str, control: Control) -> tuple[str, Counter[str]]:
    """A text without control characters and lone surrogates, and the ones that were removed. Raises BadValue."""
    removed: Counter[str] = Counter()
    return _text(text, control, removed), removed


def check(value: object) -> None:
    """Raises BadValue if no row may contain the value."""
    _clean(value, "error", Counter())


def changes_of(removed: Counter[str], where: str, control: Control) -> Iterator[Change]:
    """What was removed from a row, as changes: one for control characters, one for surrogates."""
    for code, surrogate in (("DATA_CONTROL_CHAR", False), ("DATA_UNICODE", True)):
        names = [_times(c, n) for c, n in removed.items() if (c >= "\ud800") == surrogate]
        if names:
            done = "removed" if control == "strip" else "replaced by a space:"
            yield Change(where, code, f"data.control={control}", f"{done} {', '.join(names)}", dropped=False)


def _times(character: str, count: int) -> str:
    return f"U+{ord(character):04X}" + (f" ({count} times)" if count > 1 else "")


def _clean(value: object, control: Control, removed: Counter[str], depth: int = 0) -> object:
    """The value with every text in it cleaned; ``removed`` counts what was removed."""
    if depth > MAX_DEPTH:
        raise BadValue("DATA_TOO_DEEP", f"the row is nested more than {MAX_DEPTH} levels deep.")
    if isinstance(value, str):
        return _text(value, control, removed)
    if isinstance(value, list):
        return [_clean(inner, control, removed, depth + 1) for inner in value]
    if isinstance(value, dict):
        clean = {
            _text(key, control, removed): _clean(inner, control, removed, depth + 1) for key, inner in value.items()
        }
        if len(clean) < len(value):
            raise BadValue("DATA_DUPLICATE_KEY", "two keys of one object are equal without control characters.")
        return clean
    if isinstance(value, BadValue):
        raise value
    if isinstance(value, float) and depth > 1 and not math.isfinite(value):  # a column's NaN is a missing value
        raise BadValue("DATA_NUMBER_NOT_FINITE", f"the row contains {value}, which is no number of JSON.")
    return value


def _text(text: str, control: Control, removed: Counter[str]) -> str:
    if not BAD.search(text):
        return text
    bad = BAD.findall(text)
    if control == "error":
        if bad[0] >= "\ud800":
            raise BadValue("DATA_UNICODE", f"the text contains a lone surrogate (U+{ord(bad[0]):04X}).")
        raise BadValue("DATA_CONTROL_CHAR", f"the text contains the control character U+{ord(bad[0]):04X}.")
    removed.update(bad)
    return BAD.sub(" " if control == "space" else "", text)


def type_name(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "true/false", int: "a number", float: "a number", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
