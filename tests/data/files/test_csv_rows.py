"""CSV: the rows that Python's own reader reads, and one problem per wrong line."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core.errors import DataError, Problem
from tunewright.data.files import csv_rows
from tunewright.data.files.rows import FileSettings, Item, Row

CELLS = st.text(st.sampled_from("ab,;\"'\n \té"), max_size=6)


def items(text: str) -> list[Item]:
    return list(csv_rows.items(text, "a.csv", FileSettings()))


def rows(text: str) -> list[dict[str, str]]:
    return [i.data for i in items(text) if isinstance(i, Row)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS), max_size=6), st.sampled_from(",;\t|"), st.sampled_from(["\n", "\r\n"]))
def test_the_rows_are_those_of_pythons_reader(table: list[tuple[str, str]], delimiter: str, end: str) -> None:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end)
    writer.writerows([("text", "label"), *table])
    text = out.getvalue()
    expected = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
    assert rows(text) == [row for row in expected if any(v.strip() for v in row.values())]
    assert not any(isinstance(i, Problem) for i in items(text))


WRONG = ['"open,3', '"open" x,3', "one", "one,two,three", '"a"b,"c']


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*WRONG, "text,1", '"quoted, text",2']), min_size=1, max_size=12))
def test_a_wrong_line_costs_itself(lines: list[str]) -> None:
    """An open quote takes the lines up to the next quote with it only if they form a record of the right length."""
    read = items("text,label\n" + "\n".join(lines) + "\n")
    wrong = [i for i in read if isinstance(i, Problem)]
    good = [i for i in read if isinstance(i, Row)]
    assert {p.code for p in wrong} <= {"DATA_CSV"}
    assert all("data.invalid=drop" in p.fix for p in wrong)
    places = [int(i.where.split(":")[1]) for i in read if isinstance(i, Row | Problem)]
    assert places == sorted(set(places)), "in order, each line once"
    if '"open,3' not in lines and '"a"b,"c' not in lines:
        assert len(good) == sum(line not in WRONG for line in lines)
        assert len(wrong) == sum(line in WRONG for line in lines)


def test_a_quote_that_is_never_closed_costs_one_line_of_many() -> None:
    lines = [f"text {i},{i}" for i in range(1000)]
    lines[10] = '"never closed,x'
    read = items("text,label\n" + "\n".join(lines) + "\n")
    assert len([i for i in read if isinstance(i, Row)]) == 999
    (problem,) = [i for i in read if isinstance(i, Problem)]
    assert problem.where == "a.csv:12"


@pytest.mark.parametrize("header", ["a,a", '"a,b'])
def test_a_header_that_cannot_be_used_is_an_error(header: str) -> None:
    with pytest.raises(DataError, match="DATA_CSV"):
        items(f"{header}\nx,y\n")


def test_every_cell_is_text() -> None:
    assert rows("text;label\n007;NA\n1e5;null\n") == [{"text": "007", "label": "NA"}, {"text": "1e5", "label": "null"}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sep=;\ntext;label\na, b;c\n", [{"text": "a, b", "label": "c"}]),
        ("sep=;\r\ntext;label\r\na;b\r\n", [{"text": "a", "label": "b"}]),
        (",text,label\n0,a,b\n", [{"column 1": "0", "text": "a", "label": "b"}]),
        ("text,label,,\na,b,,\nc,d,,e\n", [{"text": "a", "label": "b", "column 3": "", "column 4": ""}]),
        ('text, label\nabc, "a, b"\n', [{"text": "abc", "label": "a, b"}]),
        ("text,label\nabc, b\n", [{"text": "abc", "label": " b"}]),  # the header has no spaces, so they are the cell's
    ],
    ids=["Excel", "Excel on Windows", "pandas' index", "empty columns", "spaces", "a space"],
)
def test_what_programs_write(text: str, expected: list[dict[str, str]]) -> None:
    assert rows(text) == expected


@pytest.mark.parametrize(
    ("first", "second"),
    [('"text 10,pos', 'text 11",neg'), ('pos,"text 10', 'neg,text 11"')],
    ids=["in the first column", "in the last column"],
)
def test_two_rows_that_a_missing_quote_joins_are_noticed(first: str, second: str) -> None:
    """By their labels: the lines of a text that has line breaks have other words there."""
    last = first.startswith("pos")
    lines = [f"{label},text {i}" if last else f"text {i},{label}" for i in range(20) for label in ("pos", "neg")]
    header = "label,text" if last else "text,label"
    table = [header, *lines[:20], first, second, *lines[22:]]
    assert len(rows("\n".join(table))) == 39
    assert [i for i in items("\n".join(table)) if isinstance(i, str) and "line 22" in i]
    text = ['pos,"well, it\nwas fine, really"'] if last else ['"well, it\nwas fine, really",pos']
    assert not [i for i in items("\n".join([header, *lines, *text])) if isinstance(i, str)]
    text = ['pos,"good\nand bad"'] if last else ['"good\nand bad",pos']
    assert not [i for i in items("\n".join([header, *lines, *text])) if isinstance(i, str)]


def test_a_quote_that_a_later_one_closes_is_noticed() -> None:
    lines = [f"text {i},{i}" for i in range(40)]
    lines[10], lines[20] = '"text 10,10', 'text 20",20'
    assert len(rows("text,label\n" + "\n".join(lines))) < 40
    assert [i for i in items("text,label\n" + "\n".join(lines)) if isinstance(i, str) and "line 12" in i]
    addresses = 'text,label\n"1 High Street\nOxford, UK\nOX1",address\n'
    assert not [i for i in items(addresses) if isinstance(i, str)]
