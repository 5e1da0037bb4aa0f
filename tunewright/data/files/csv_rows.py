"""CSV -> rows. Every cell is read as text: "NA" remains a label, "007" keeps its zeros."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from tunewright.core.errors import DataError, Problem, data_error
from tunewright.data.files.rows import FileSettings, Item
from tunewright.data.files.values import DROP, rows_of

MAX_CELL = 16 * 1024 * 1024


def items(text: str, name: str, how: FileSettings) -> Iterator[Item]:
    """The rows of a file and the problems in it. Raises DATA_CSV if the header cannot be used."""
    header_line = text.split("\n", 1)[0]
    delimiter = max(",;\t|", key=header_line.count)
    if delimiter != "," and header_line.count(delimiter):
        yield f"columns are separated by {delimiter!r}"
    header: list[str] | None = None
    for record in _records(list(io.StringIO(text, newline="")), delimiter, name):
        if isinstance(record, Problem):
            if header is None:
                raise DataError([record])
            yield record
            continue
        line, cells = record
        if not any(c.strip() for c in cells):
            continue
        where = f"{name}:{line}"
        if header is None:
            header = _header(cells, where)
        elif len(cells) != len(header):
            message = f"the row has {len(cells)} cells, but the header has {len(header)}."
            fix = f"{DROP}, or quote cells that contain the separator."
            yield Problem("DATA_CSV", message, where, fix)
        else:
            yield from rows_of(dict(zip(header, cells, strict=True)), where, how)


def _header(cells: Sequence[str], where: str) -> list[str]:
    header = [c.strip() for c in cells]
    duplicate = next((h for i, h in enumerate(header) if h in header[:i]), None)
    if "" in header or duplicate is not None:
        what = f"the column {duplicate!r} occurs twice" if duplicate else "a column has no name"
        fix = "give every column a unique name in the first line."
        raise data_error("DATA_CSV", f"{what}.", where=where, fix=fix)
    return header


def _records(lines: Sequence[str], delimiter: str, name: str) -> Iterator[tuple[int, list[str]] | Problem]:
    """The records with the numbers of their first lines. After a wrong line, reading resumes at the next: a quote that
    is never closed costs one line, not the rest of the file."""
    csv.field_size_limit(MAX_CELL)
    start = 0
    while start < len(lines):
        reader = csv.reader((lines[i] for i in range(start, len(lines))), delimiter=delimiter, strict=True)
        first = start
        try:
            for cells in reader:
                yield first + 1, cells
                first = start + reader.line_num
            return
        except csv.Error as error:
            fix = f'{DROP}, or close the quote (write "" for a quote inside one).'
            yield Problem("DATA_CSV", f"{error}.", f"{name}:{first + 1}", fix)
        start = first + 1
