"""Schemas: an inferred one accepts its own values and claims little else; a given one is checked when it is read."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tunewright.core.errors import DataError
from tunewright.data.structure import outline, schema, schema_file
from tunewright.data.structure.schema import Schema, infer

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(-9, 9), st.sampled_from("abc"))
VALUES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abc"), inner))
)


@settings(max_examples=100, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=30))
def test_an_inferred_schema_accepts_its_own_values(values: list[Any]) -> None:
    """By `jsonschema`'s own validator, which also finds the schema valid."""
    inferred = infer(values)
    Draft202012Validator.check_schema(inferred)
    assert schema.invalid(inferred) is None
    ours, theirs = Schema("", inferred), Draft202012Validator(inferred)
    for value in values:
        theirs.validate(value)
        assert ours.accepts(value)
        assert ours.violation(value) is None


def test_what_is_inferred() -> None:
    rows = [{"type": "XY"[i % 2], "name": f"n{i}", "price": [1, 2.5][i % 2]} for i in range(40)]
    (more := rows[0])["tags"] = ["a"]
    more["note"] = None
    items = {
        "type": "object",
        "properties": {
            "type": {"type": "string", "enum": ["X", "Y"]},
            "name": {"type": "string"},
            "price": {"type": "number"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "note": {"type": "null"},
        },
        "required": ["type", "name", "price"],
    }
    assert infer([rows]) == {"type": "array", "items": items}
    assert list(outline.fields(infer([rows]))) == [
        ("[].type", "text, one of: X, Y, always present"),
        ("[].name", "text, always present"),
        ("[].price", "number, always present"),
        ("[].tags[]", "text"),
        ("[].note", "null"),
    ]
    assert outline.example(infer([rows])) == [
        {"type": "X | Y", "name": "text", "price": 0.5, "tags": ["text"], "note": None}
    ]


def test_no_claim_rests_on_few_values() -> None:
    def claims(rows: list[Any]) -> dict[str, Any]:
        return infer(rows)

    few = claims([{"a": "x"}, {"a": "y"}] * 9)
    assert "enum" not in few["properties"]["a"]
    assert "additionalProperties" not in few
    many = claims([{"a": "x"}, {"a": "y"}] * 10)
    assert many["properties"]["a"]["enum"] == ["x", "y"]
    assert many["additionalProperties"] is False
    rare = claims([{"a": "x"}] * 100 + [{"a": "y", "b": 1}] * 4)
    assert "enum" not in rare["properties"]["a"], "a rare value: there may be others"
    assert "additionalProperties" not in rare
    assert "enum" not in claims([{"a": f"x{i % 21}"} for i in range(2100)])["properties"]["a"]


def test_choices_that_are_private_are_not_listed() -> None:
    """Choices are shown to people and to models."""
    inferred = infer([{"owner": ["anna.schmidt@example.com", "none"][i % 2], "kind": "ab"[i % 2]} for i in range(40)])
    assert "enum" not in inferred["properties"]["owner"]  # type: ignore[index,call-overload]
    assert inferred["properties"]["kind"]["enum"] == ["a", "b"]  # type: ignore[index,call-overload]
    assert "anna" not in str([*outline.fields(inferred), outline.example(inferred)])


def test_an_object_with_many_rare_keys_is_a_map() -> None:
    inferred = infer([{f"k{i}": {"n": i}, f"l{i}": {"n": i}} for i in range(60)])
    assert "properties" not in inferred
    assert inferred["additionalProperties"]["properties"]["n"] == {"type": "integer"}  # type: ignore[index,call-overload]
    assert list(outline.fields(inferred)) == [("*.n", "integer, always present")]
    assert Schema("", inferred).accepts({"new": {"n": 1}})
    assert not Schema("", inferred).accepts({"new": {"n": "x"}})


@settings(max_examples=50, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=30))
def test_every_schema_can_be_shown(values: list[Any]) -> None:
    inferred = infer(values)
    assert all(isinstance(path, str) and text for path, text in outline.fields(inferred))
    json.dumps(outline.example(inferred))


# -- a user's schema

GOOD = {
    "type": "object",
    "properties": {"price": {"$ref": "#/$defs/money"}},
    "required": ["price"],
    "$defs": {"money": {"type": "number", "minimum": 0}},
}


def test_a_schema_is_read(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    file.write_text(json.dumps(GOOD))
    read = schema_file.load(str(file))
    assert read.accepts({"price": 1})
    assert read.violation({"price": -1}) == "$.price: minimum 0"
    assert read.violation({"price": "secret"}) == '$.price: type "number"'
    assert read.violation({}) == "$: 'price' is a required property"
    assert "secret" not in str(read.violation({"price": "secret"}))


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (None, "s.json", "cannot read the schema"),
        (b"\xff", "s.json", "not UTF-8"),
        (b"{", "s.json:1:2", "Expecting property name"),
        (b'{"type":\n "object",}', "s.json:2:11", ""),
        (b"[]", "s.json", "not a JSON object"),
        (b'{"properties": {"a": {"type": "strng"}}}', "s.json", "$.properties.a.type: 'strng' is not valid"),
        (b'{"required": "a"}', "s.json", "$.required"),
        (b'{"pattern": "("}', "s.json", "$.pattern"),
        (b'{"$ref": "#/$defs/a"}', "s.json", "'/$defs/a' leads to nothing"),
        (b'{"items": {"$ref": "http://localhost/a.json"}}', "s.json", "leads to nothing in this file"),
        (b'{"items": {"$ref": "other.json"}}', "s.json", "leads to nothing in this file"),
        (b'{"$ref": "#"}', "s.json", "without end"),
        (b"[" * 100_000, "s.json", "nested too deeply"),
        (b'{"$schema": "http://localhost/draft"}', "s.json", 'the dialect "http://localhost/draft" is unknown'),
        (b'{"$schema": 7}', "s.json", "is unknown"),
        (b'{"unevaluatedProperties": false, "patternProperties": {"a": {}}}', "s.json", "not supported"),
    ],
)
def test_a_schema_that_cannot_be_used_is_an_error_with_its_place(
    tmp_path: Path, text: bytes | None, place: str, words: str
) -> None:
    file = tmp_path / "s.json"
    if text is not None:
        file.write_bytes(text)
    with pytest.raises(DataError) as caught:
        schema_file.load(str(file))
    assert caught.value.code == "DATA_SCHEMA"
    assert caught.value.where == str(tmp_path / place)
    assert words in str(caught.value)
    assert caught.value.problems[0].fix


# -- patterns


PATTERNS = {
    "type": "object",
    "properties": {"a": {"type": "string", "pattern": "^a+$"}},
    "patternProperties": {"^n_": {"type": "integer"}},
}


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["a", "n_1", "n_2", "b"]), st.one_of(st.sampled_from(["a", "aa", "b"]), st.integers())
    ),
    st.sampled_from([None, False, True, {"type": "string"}]),
)
def test_patterns_are_checked_as_jsonschema_does(value: Any, others: Any) -> None:
    tested = {**PATTERNS, **({} if others is None else {"additionalProperties": others})}
    assert Schema("s", tested).accepts(value) == Draft202012Validator(tested).is_valid(value)


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [(r"^\p{L}+$", "é", "1"), (r"^(?<n>a)$", "a", "b"), (r"^[\w-.]+$", "a-.", "a b"), (r"^\d{4}$", "2024", "24")],
)
def test_patterns_of_ecma_262_are_valid(pattern: str, good: str, bad: str) -> None:
    for value, wrap in (({"pattern": pattern}, str), ({"patternProperties": {pattern: {}}}, lambda key: {key: 1})):
        assert schema.invalid({**value, "additionalProperties": False}) is None
        tested = Schema("s", {**value, "additionalProperties": False})
        assert [tested.accepts(wrap(text)) for text in (good, bad)] == [True, False]  # type: ignore[operator]


def test_what_only_looks_like_a_pattern_is_not_compiled() -> None:
    assert schema.invalid({"properties": {"pattern": {"const": "("}}, "default": {"pattern": "("}}) is None
    assert "$.patternProperties" in str(schema.invalid({"patternProperties": {"(": {}}}))


def test_an_answer_is_valid_whatever_was_checked_before_it() -> None:
    tested, slow = Schema("s", {"pattern": "^(a|aa)+$"}), "a" * 40 + "!"
    assert [tested.accepts(text) for text in ("aa", slow, "aa", slow, "b")] == [True, False, True, False, False]


@pytest.mark.parametrize("keyword", ["pattern", "patternProperties"])
def test_a_pattern_that_takes_exponential_time_is_stopped(keyword: str) -> None:
    pattern, text = "^(a|aa)+$", "a" * 40 + "!"
    slow = {"items": {"pattern": pattern}} if keyword == "pattern" else {"items": {"patternProperties": {pattern: {}}}}
    assert schema.invalid(slow) is None
    tested, value = Schema("s", slow), [text if keyword == "pattern" else {text: 1}] * 100
    started = time.monotonic()
    for _ in range(100):
        assert not tested.accepts(value)
        assert "takes too long" in str(tested.violation(value))
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    "wrapped",
    [
        {"type": "json_schema", "json_schema": {"name": "price", "strict": True, "schema": GOOD}},
        {"name": "price", "strict": True, "schema": GOOD},
        {"schema": GOOD},
        GOOD,
    ],
    ids=["response_format", "json_schema", "schema", "plain"],
)
def test_a_schema_as_openai_wraps_it(tmp_path: Path, wrapped: dict[str, Any]) -> None:
    (tmp_path / "s.json").write_text(json.dumps(wrapped))
    assert schema_file.load(str(tmp_path / "s.json")).value == GOOD


def test_a_property_may_be_called_schema(tmp_path: Path) -> None:
    value = {"type": "object", "properties": {"schema": {"type": "object"}}, "schema": {}}
    (tmp_path / "s.json").write_text(json.dumps(value))
    assert schema_file.load(str(tmp_path / "s.json")).value == value


def test_how_many_schemas_apply_to_one_value() -> None:
    def doubled(levels: int, through: str) -> dict[str, Any]:
        inner: dict[str, Any] = {"type": "object"}
        for _ in range(levels):
            two = [inner, inner]
            inner = {"anyOf": two} if through == "itself" else {"anyOf": [{"properties": {"a": s}} for s in two]}
        return inner

    assert "apply to one value" in str(schema.invalid(doubled(12, "itself")))
    assert "apply to one value" in str(schema.invalid(doubled(12, "a property")))
    wide = {"properties": {f"p{i}": {"anyOf": [{"type": "string"}, {"type": "null"}]} for i in range(2000)}}
    assert schema.invalid(wide) is None, "many properties, of which each has a value of its own"
    tree = {"properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}, "type": "object"}
    assert schema.invalid(tree) is None, "as deep as its values"
    chain = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(12)}
    assert "apply to one value" in str(schema.invalid({"$ref": "#/$defs/d0", "$defs": {**chain, "d12": {}}}))
