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


@pytest.mark.parametrize("header", ["a,a", "a,", '"a,b'])
def test_a_header_that_cannot_be_used_is_an_error(header: str) -> None:
    with pytest.raises(DataError, match="DATA_CSV"):
        items(f"{header}\nx,y\n")


def test_every_cell_is_text() -> None:
    assert rows("text;label\n007;NA\n1e5;null\n") == [{"text": "007", "label": "NA"}, {"text": "1e5", "label": "null"}]
