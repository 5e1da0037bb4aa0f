"""JSON: the rows that Python's own reader reads, one problem per wrong row, and arrays in all their forms."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core.errors import DataError, Problem
from tunewright.data.files import json_rows
from tunewright.data.files.rows import FileSettings, Item, Row
from tunewright.data.files.values import BAD

STRICT, STRIP = FileSettings(), FileSettings(control="strip")
LEAF = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)
OBJECTS = st.lists(st.dictionaries(st.text(), VALUES, max_size=3), min_size=1, max_size=5)
# Lines that are not rows, and the code of each.
WRONG = {
    '{"a": 1': "DATA_JSON_INVALID",
    "{'a': 1}": "DATA_JSON_INVALID",
    '{"a": 1},': "DATA_JSON_INVALID",
    '{"a": 1, "a": 2}': "DATA_DUPLICATE_KEY",
    '{"a": {"b": 1, "b": 1}}': "DATA_DUPLICATE_KEY",
    '{"a": NaN}': "DATA_NUMBER_NOT_FINITE",
    '{"a": [1e999]}': "DATA_NUMBER_NOT_FINITE",
    '{"a": ' + "9" * 400 + "}": "DATA_NUMBER_TOO_LARGE",
    '{"a": ' + "[" * 150 + "]" * 150 + "}": "DATA_TOO_DEEP",
    '{"a": ' + "[" * 100_000: "DATA_TOO_DEEP",
    "[1]": "DATA_ROW_NOT_OBJECT",
    "7": "DATA_ROW_NOT_OBJECT",
    '{"a": "\\u0001"}': "DATA_CONTROL_CHAR",
    '{"a": "x\ty"}': "DATA_CONTROL_CHAR",
    '{"a": "\\udc00"}': "DATA_UNICODE",
}


def items(text: str, how: FileSettings = STRIP) -> list[Item]:
    return list(json_rows.items(text, "a", how))


def rows(text: str, how: FileSettings = STRIP) -> list[dict[str, Any]]:
    return [i.data for i in items(text, how) if isinstance(i, Row)]


def stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {BAD.sub("", k): stripped(v) for k, v in value.items()}
    if isinstance(value, list):
        return [stripped(v) for v in value]
    return BAD.sub("", value) if isinstance(value, str) else value


@settings(max_examples=200, deadline=None)
@given(OBJECTS, st.booleans(), st.sampled_from([None, 1]))
def test_lines_arrays_and_containers_have_the_same_rows(
    objects: list[dict[str, Any]], ascii_: bool, indent: Any
) -> None:
    lines = [json.dumps(o, ensure_ascii=ascii_) for o in objects]
    expected = rows("\n".join(["{}", *lines]))[1:]
    assert rows(json.dumps(objects, ensure_ascii=ascii_, indent=indent)) == expected
    contained = {"rows": objects}
    if objects[0] and not any(name in objects[0] for name in json_rows.MESSAGE):
        assert rows(json.dumps(contained, ensure_ascii=ascii_, indent=indent)) == expected
    if len(expected) == len(objects):  # no two keys became equal
        assert expected == [stripped(o) for o in objects]


@pytest.mark.parametrize(("line", "code"), WRONG.items(), ids=[f"{c} {k[:12]}" for k, c in WRONG.items()])
def test_a_wrong_line_costs_itself(line: str, code: str) -> None:
    good = '{"a": "b"}'
    read = items(f"{good}\n{line}\n{good}", STRICT)
    assert [type(i) for i in read] == [Row, Problem, Row]
    problem = read[1]
    assert isinstance(problem, Problem)
    assert (problem.code, problem.where.split(":")[1]) == (code, "2")
    assert "data." in problem.fix or "sed" in problem.fix, "one setting or command for all rows"
    assert len(str(problem)) < 400


@pytest.mark.parametrize("line", [k for k, c in WRONG.items() if c not in ("DATA_JSON_INVALID",) and len(k) < 5000])
def test_a_wrong_element_of_an_array_costs_itself(line: str) -> None:
    if "\t" in line:
        line = line.replace("\t", "\\u0002")
    read = items(f'[{{"a": "b"}}, {line},\n {{"a": "c"}}]', STRICT)[1:]
    assert [i.where for i in read] == ["a[0]", "a[1]", "a[2]"]  # type: ignore[union-attr]
    assert [type(i) for i in read] == [Row, Problem, Row]


def test_an_array_that_is_not_valid_json_is_an_error_with_its_place() -> None:
    with pytest.raises(DataError) as caught:
        items('[{"a": 1},\n {"a": }]')
    assert caught.value.where == "a:2:8"
    with pytest.raises(DataError, match="DATA_TOO_DEEP"):
        items("[" * 200_000)


def test_tabs_and_control_characters_that_are_not_escaped() -> None:
    text = '{"a": "x\ty\x02"}'
    with pytest.raises(DataError, match=r"DATA_CONTROL_CHAR.*data\.control=strip"):
        items(f"[{text}]", STRICT)
    for given_ in (text, f"[{text}]", f'[{{"a": "line\nbreak"}}, {text}]'):
        assert rows(given_)[-1] == {"a": "x\ty"}
    assert rows('{"a": "x\x01", "b": }') == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"data": [{"a": 1}, {"a": 2}]}', [{"a": 1}, {"a": 2}]),
        ('\n {"train":\n [{"a": 1}]\n}\n', [{"a": 1}]),
        ('{"messages": [{"role": "user", "content": "x"}]}', None),
        ('{"conversations": [{"from": "human", "value": "x"}]}', None),
        ('{"conversation": [{"human": "x", "assistant": "y"}]}', None),
        ('{"text": "x"}', None),
        ('{"data": []}', None),
        ('{"data": [1]}', None),
        ('{"prompt": "x", "tools": [{"a": 1}]}', None),
    ],
)
def test_an_object_with_one_list_of_rows(text: str, expected: list[dict[str, Any]] | None) -> None:
    assert rows(text) == (expected or [json.loads(text)])
    notices = [i for i in items(text) if isinstance(i, str)]
    assert bool(notices) == (expected is not None), "what is read in another way is reported"


def test_two_lines_are_never_a_container() -> None:
    line = '{"data": [{"a": 1}]}'
    assert rows(f"{line}\n{line}") == [json.loads(line)] * 2


TABLE = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(12)]
COLUMNS = {name: [row[name] for row in TABLE] for name in ("prompt", "completion")}
MESSAGES = [
    [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}] for r in TABLE
]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(COLUMNS),
        json.dumps({name: {str(i): v for i, v in enumerate(values)} for name, values in COLUMNS.items()}),
        json.dumps({"version": "1.0", "data": TABLE}),
        "\n".join(json.dumps(row, indent=2) for row in TABLE),
        "\r".join(map(json.dumps, TABLE)),
        "\n\ufeff".join(map(json.dumps, TABLE)),
    ],
    ids=["columns", "pandas", "with a version", "on several lines", "old Mac", "two files with byte order marks"],
)
def test_the_rows_in_other_layouts(text: str) -> None:
    assert rows(text) == TABLE


def test_rows_on_several_lines_have_the_places_of_their_first() -> None:
    text = "\n\n".join(json.dumps(row, indent=2) for row in TABLE)
    assert [i.where for i in items(text) if isinstance(i, Row)] == [f"a:{1 + 5 * i}" for i in range(len(TABLE))]


def test_a_mistake_in_rows_on_several_lines_has_a_place() -> None:
    text = "\n".join(json.dumps(row, indent=2) for row in TABLE).replace('"answer 7"', "oops")
    with pytest.raises(DataError) as caught:
        items(text)
    assert [(p.code, p.where) for p in caught.value.problems] == [("DATA_JSON_INVALID", "a:31:17")]


def test_a_row_may_be_its_list_of_messages() -> None:
    assert (
        rows("\n".join(map(json.dumps, MESSAGES))) == [{"messages": m} for m in MESSAGES] == rows(json.dumps(MESSAGES))
    )
    row = {"messages": MESSAGES[0], "tools": [{"name": f"f{i}"} for i in range(12)]}
    assert rows(json.dumps(row)) == [row], "an object with one list of messages is a row"
