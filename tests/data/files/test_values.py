"""Values of rows: control characters, surrogates, depth."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core.errors import Problem
from tunewright.data.files.rows import FileSettings, Row
from tunewright.data.files.values import BAD, MAX_DEPTH, BadValue, rows_of
from tunewright.data.remedies.change import Change

DIRTY = st.text(st.sampled_from("ab\t\n\x00\x1b\x7f\u2028é😀\ud83d\udc00"), max_size=8)
VALUES = st.recursive(
    st.none() | st.integers() | DIRTY,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(DIRTY, inner, max_size=3),
    max_leaves=10,
)


def texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [*value, *(t for v in value.values() for t in texts(v))]
    if isinstance(value, list):
        return [t for v in value for t in texts(v)]
    return [value] if isinstance(value, str) else []


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(DIRTY, VALUES, max_size=4))
def test_strip_leaves_nothing_bad_and_changes_nothing_else(value: dict[str, object]) -> None:
    dirty = any(BAD.search(t) for t in texts(value))
    for control in ("strip", "space"):
        items = list(rows_of(value, "a:1", FileSettings(control=control)))
        *changes, last = items
        if isinstance(last, Problem):
            assert last.code == "DATA_DUPLICATE_KEY", "two keys became equal"
            continue
        assert isinstance(last, Row)
        assert not any(BAD.search(t) for t in texts(last.data))
        expected = [BAD.sub("" if control == "strip" else " ", t) for t in texts(value)]
        assert texts(last.data) == expected
        assert bool(changes) == dirty
    (only,) = rows_of(value, "a:1", FileSettings())
    assert isinstance(only, Problem if dirty else Row)


def test_what_was_removed_is_counted() -> None:
    *changes, row = rows_of({"a": "x\x1by\x1b", "b": ["\ud800"]}, "a:1", FileSettings(control="strip"))
    assert isinstance(row, Row)
    assert row.data == {"a": "xy", "b": [""]}
    assert [c.message for c in changes if isinstance(c, Change)] == ["removed U+001B (2 times)", "removed U+D800"]
    assert {c.setting for c in changes if isinstance(c, Change)} == {"data.control=strip"}


@pytest.mark.parametrize("control", ["error", "strip", "space"])
def test_a_bad_value_or_too_many_levels_cost_the_row(control: str) -> None:
    deep: object = "x"
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    how = FileSettings(control=control)  # type: ignore[arg-type]
    (first,) = rows_of({"a": deep}, "a:1", how)
    (second,) = rows_of({"a": [BadValue("DATA_NUMBER_TOO_LARGE", "big")]}, "a:2", how)
    assert [first.code, second.code] == ["DATA_TOO_DEEP", "DATA_NUMBER_TOO_LARGE"]  # type: ignore[union-attr]
    assert all(re.search(r"data\.invalid=drop", p.fix) for p in (first, second))  # type: ignore[union-attr]
