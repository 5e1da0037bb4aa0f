"""JSON values in generated text: read in any wrapping, never out of a cut answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunewright.data.structure.values import MAX_DEPTH, lenient_json, strict_json, unfenced

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
)
CONTAINERS = VALUES.filter(lambda v: isinstance(v, dict | list))
WRAPPINGS = ["{}", "```json\n{}\n```", "Here it is:\n{}", "{}\nI hope this helps!", "**Answer:** {} (as asked)"]


@settings(max_examples=200, deadline=None)
@given(CONTAINERS, st.sampled_from(WRAPPINGS))
@example({"```": None}, WRAPPINGS[1])
def test_a_value_is_read_in_any_wrapping(value: Any, wrapping: str) -> None:
    text = wrapping.replace("{}", json.dumps(value))
    assert lenient_json(text, value) == value
    assert strict_json(text) == (value if wrapping == "{}" else None)
    if wrapping.startswith("```"):
        assert strict_json(unfenced(text)) == value


ITEMS = [{"name": "A", "tags": ["x"]}, {"name": "B", "tags": []}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "A", "tags": ["x"]}\n{"name": "B", "tags": []}', ITEMS),
        ('1. {"name": "A", "tags": ["x"]}\n2. {"name": "B", "tags": []}', ITEMS),
        (json.dumps(ITEMS[0]), ITEMS[:1]),
        (f"[1] see above: {json.dumps(ITEMS)}", [1]),
        ("no entities", None),
        ("", None),
        ("null", None),
    ],
)
def test_lists_without_brackets(text: str, expected: Any) -> None:
    assert lenient_json(text, []) == expected


@pytest.mark.parametrize("value", [ITEMS, ["a", "b"], [[1, 2], [3]], {"of": ITEMS}])
def test_a_cut_answer_is_not_read(value: Any) -> None:
    """Not even its complete items, for a cut object is not read either; a nested list of scalars may be."""
    text = json.dumps(value)
    for end in range(len(text)):
        assert strict_json(text[:end]) is None
        if value not in ([[1, 2], [3]], {"of": ITEMS}):
            assert lenient_json(text[:end], value) is None, text[:end]


@pytest.mark.parametrize(
    "text", ["NaN", "[NaN]", '{"a": Infinity}', "[1] [2]", "{'a': 1}", "7", '"text"', "true", "[" * 5000]
)
def test_what_is_not_a_json_object_or_array(text: str) -> None:
    assert strict_json(text) is None


def test_depth_is_limited() -> None:
    for depth, read in ((MAX_DEPTH, True), (MAX_DEPTH + 1, False)):
        assert (strict_json("[" * depth + "]" * depth) is not None) == read
    assert lenient_json("[" * 900 + "]" * 900, []) is None
