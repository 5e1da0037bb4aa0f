"""CSV -> rows. Every cell is read as text: "NA" remains a label, "007" keeps its zeros."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tunewright.core.errors import DataError, Problem, data_error
from tunewright.core.words import first_repeated
from tunewright.data.files.rows import FileSettings, Item
from tunewright.data.files.values import DROP, rows_of

MAX_CELL = 16 * 1024 * 1024
SHORT, USUAL = 40, 3  # characters of a label, and rows that have it


def items(text: str, name: str, how: FileSettings) -> Iterator[Item]:
    """The rows of a file and the problems in it. Raises DATA_CSV if the header cannot be used."""
    lines = list(io.StringIO(text, newline=""))
    named = re.fullmatch(r"sep=(.)\s*", lines[0]) if lines else None  # Excel's first line
    lines[:1] = ["\n"] if named else lines[:1]
    header_line = next((line for line in lines if line.strip()), "")
    delimiter = named[1] if named else max(",;\t|", key=header_line.count)
    if delimiter != "," and header_line.count(delimiter):
        yield f"columns are separated by {delimiter!r}"
    spaced = header_line.count(delimiter) == header_line.count(f"{delimiter} ") > 0
    if spaced:
        yield f"spaces after {delimiter!r} are skipped, as in the header"
    header: list[str] | None = None
    joined, unnamed = Joined(delimiter), list[int]()
    for record in _records(lines, delimiter, name, spaced):
        if isinstance(record, Problem):
            if header is None:
                raise DataError([record])
            yield record
            continue
        line, last, cells = record
        if not any(c.strip() for c in cells):
            continue
        where = f"{name}:{line}"
        if header is None:
            header = _header(cells, where)
            unnamed = [i for i, c in enumerate(cells) if i and not c.strip()]
        elif extra := next((i for i in unnamed if cells[i : i + 1] and cells[i].strip()), None):
            message = f"column {extra + 1} has no name in the first line."
            yield Problem("DATA_CSV", message, where, f"name it, or {DROP.removeprefix('set ')}.")
        elif len(cells) != len(header):
            message = f"the row has {len(cells)} cells, but the header has {len(header)}."
            fix = f"{DROP}, or quote cells that contain the separator."
            yield Problem("DATA_CSV", message, where, fix)
        else:
            if len(header) > 1:
                joined.add(line, lines[line - 1 : last], cells)
            yield from rows_of(dict(zip(header, cells, strict=True)), where, how)
    if swallowed := joined.lines():
        lines_named = ", ".join(map(str, swallowed[:5]))
        yield f"a cell contains lines that look like rows; is a quote missing? See the rows at line {lines_named}"


@dataclass(frozen=True)
class Joined:
    """Rows that a missing quote has joined. ``certain``: by a long cell; ``seen``: how many records of one line have a
    value, by column; ``several``: the records each of whose lines has as many cells as a row."""

    delimiter: str
    certain: list[int] = field(default_factory=list)
    seen: Counter[tuple[int, str]] = field(default_factory=Counter)
    several: dict[int, list[list[str]]] = field(default_factory=dict)

    def add(self, line: int, raw: Sequence[str], cells: Sequence[str]) -> None:
        """A record that begins in ``line``, of the lines ``raw``."""
        parts = [part.strip().split(self.delimiter) for part in raw]
        if any(_looks_like_rows(cell, self.delimiter, len(cells)) for cell in cells):
            self.certain.append(line)
        elif len(raw) == 1:
            self.seen.update((i, cell) for i, cell in enumerate(cells) if len(cell) <= SHORT)
        elif all(len(part) == len(cells) for part in parts):
            self.several[line] = parts

    def lines(self) -> list[int]:
        """Where they begin. Each line of a joined record has, in some column, a value that is usual there: a label, not
        a part of a text with line breaks."""
        usual = {value for value, count in self.seen.items() if count >= USUAL}

        def are_rows(parts: list[list[str]]) -> bool:
            return any(all((i, part[i].strip('"')) in usual for part in parts) for i in range(len(parts[0])))

        return sorted([*self.certain, *(line for line, parts in self.several.items() if are_rows(parts))])


def _looks_like_rows(cell: str, delimiter: str, columns: int) -> bool:
    """Whether most lines of a long cell have as many separators as a row."""
    inner = cell.split("\n")[1:-1]
    return len(inner) > 1 and sum(line.count(delimiter) == columns - 1 for line in inner) > len(inner) / 2


def _header(cells: Sequence[str], where: str) -> list[str]:
    """The names of the columns. One without a name is named by its place: pandas writes its index so, Excel empty
    columns."""
    header = [c.strip() or f"column {i}" for i, c in enumerate(cells, 1)]
    duplicate = first_repeated(header)
    if duplicate is not None:
        fix = "give every column a unique name in the first line."
        raise data_error("DATA_CSV", f"the column {duplicate!r} occurs twice.", where=where, fix=fix)
    return header


def _records(
    lines: Sequence[str], delimiter: str, name: str, spaced: bool
) -> Iterator[tuple[int, int, list[str]] | Problem]:
    """The records with the numbers of their first and last lines. After a wrong line, reading resumes at the next: a
    quote that is never closed costs one line, not the rest of the file."""
    csv.field_size_limit(MAX_CELL)
    start = 0
    while start < len(lines):
        rest = (lines[i] for i in range(start, len(lines)))
        reader = csv.reader(rest, delimiter=delimiter, skipinitialspace=spaced, strict=True)
        first = start
        try:
            for cells in reader:
                last = start + reader.line_num
                yield first + 1, last, cells
                first = last
            return
        except csv.Error as error:
            fix = f'{DROP}, or close the quote (write "" for a quote inside one).'
            yield Problem("DATA_CSV", f"{error}.", f"{name}:{first + 1}", fix)
        start = first + 1
