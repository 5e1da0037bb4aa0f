"""YAML, XML and lines of values: read in any wrapping; nothing in them is executed or expanded."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML as Ruamel
from ruamel.yaml.compat import StringIO

from tunewright.data.structure import csv_lines
from tunewright.data.structure.comparison import compare
from tunewright.data.structure.values import MAX_DEPTH, unfenced
from tunewright.data.structure.xml_notation import lenient_xml, strict_xml
from tunewright.data.structure.yaml_notation import lenient_yaml, strict_yaml

ORDER = {
    "id": 7,
    "at": "2020-01-01",
    "ok": True,
    "items": [{"name": "pen", "price": 1.5}, {"name": "no", "price": None}],
}
TEXTS = st.text("ab- #1.", max_size=6)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
)
WRAPPINGS = [
    "{}",
    "```yaml\n{}\n```",
    "```\n{}\n```\nI hope this helps!",
    "Here is the YAML:\n\n{}",
    "Sure!\n{}\n\nThat is all that it says.",
]


def as_yaml(value: Any) -> str:
    stream = StringIO()
    Ruamel(typ="safe", pure=True).dump(value, stream)
    return stream.getvalue().rstrip("\n").removesuffix("\n...")


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.lists(VALUES, min_size=1, max_size=3), st.dictionaries(TEXTS, VALUES, min_size=1, max_size=3)))
def test_yaml_is_read_as_ruamel_writes_it(value: Any) -> None:
    assert strict_yaml(as_yaml(value)) == value


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_yaml_is_read_in_any_wrapping(wrapping: str) -> None:
    plain = "id: 7\nat: 2020-01-01\nok: true\nitems:\n- name: pen\n  price: 1.5\n- name: no\n  price: null"
    assert lenient_yaml(wrapping.replace("{}", plain), {}) == ORDER
    assert lenient_yaml(wrapping.replace("{}", plain), []) is None


@pytest.mark.parametrize(
    "text",
    [
        "a: &x 1\nb: *x",
        "a: !!python/object:os.system x\nb: 1",
        "a: 1\na: 2",
        "1: x\n2: y",
        "a: [1",
        "just text",
        "[" * 10_000,
        "a: " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
    ],
)
def test_what_is_not_plain_yaml(text: str) -> None:
    assert strict_yaml(text) is None


XML = '<order id="7"><!-- two --><item><name>pen &amp; ink</name><price>2</price></item><item/>late<n/></order>'
READ = {"order": {"@id": "7", "item": [{"name": ["pen & ink"], "price": ["2"]}, ""], "n": [""], "#text": "late"}}


@pytest.mark.parametrize(
    "wrapping", ["{}", "```xml\n{}\n```", "Here it is: {}", '<?xml version="1.0"?>\n{}', "{}\nDone."]
)
def test_xml_is_read_in_any_wrapping(wrapping: str) -> None:
    assert lenient_xml(wrapping.replace("{}", XML), {}) == READ


def test_one_child_and_two_have_the_same_path() -> None:
    one, two = strict_xml("<a><b>x</b></a>"), strict_xml("<a><b>x</b><b>y</b></a>")
    assert one is not None
    assert compare(one, two).right == (("a.b[]", "x"),)


@pytest.mark.parametrize(
    "text",
    [
        "<a>",
        "<a></b>",
        "<a/><b/>",
        "a<b",
        "",
        '<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>',
        '<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>',
        "<a>" * 100 + "</a>" * 100,
        "<a>\0</a>",
    ],
)
def test_what_is_not_plain_xml(text: str) -> None:
    assert strict_xml(text) is None


@pytest.mark.parametrize(
    ("answer", "valid"),
    [
        ("a,b\nc,d", True),
        ('"a, with",b\nc,d\n', True),
        ("```csv\na,b\n```", True),
        ("a,b\nc", False),
        ("a,b,c\nd,e,f", False),
        ('"a,b\nc,d', False),
        ("a;b", False),
        ("", False),
    ],
)
def test_lines_of_values_have_the_columns_of_the_target(answer: str, valid: bool) -> None:
    assert csv_lines.is_valid(answer, like="x,y\nz,w") == valid


def test_a_fence_within_the_text_is_not_its_wrapping() -> None:
    assert unfenced("```json\n{}\n```") == "{}"
    for text in ("{}", "x ```\n{}\n```", "```\n{}\n```\n```\n{}\n```", "```{}```"):
        assert unfenced(text) == text
    assert json.loads(unfenced("\n```\n[1,\n2]```\n")) == [1, 2]
