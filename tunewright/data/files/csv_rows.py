"""CSV -> rows. Every cell is read as text: "NA" remains a label, "007" keeps its zeros."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

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
    swallowed, unnamed = list[int](), list[int]()
    seen, several = Counter[tuple[int, str]](), list[tuple[int, list[list[str]]]]()
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
            if len(header) > 1 and any(_looks_like_rows(c, delimiter, len(header)) for c in cells):
                swallowed.append(line)
            elif last > line and header[1:]:
                parts = [part.strip().split(delimiter) for part in lines[line - 1 : last]]
                if all(len(part) == len(header) for part in parts):
                    several.append((line, parts))
            elif len(header) > 1:
                seen.update((i, c) for i, c in enumerate(cells) if len(c) <= SHORT)
            yield from rows_of(dict(zip(header, cells, strict=True)), where, how)
    swallowed = sorted([*swallowed, *(line for line, parts in several if _are_rows(parts, seen))])
    if swallowed:
        lines_named = ", ".join(map(str, swallowed[:5]))
        yield f"a cell contains lines that look like rows; is a quote missing? See the rows at line {lines_named}"


def _are_rows(parts: Sequence[Sequence[str]], seen: Mapping[tuple[int, str], int]) -> bool:
    """Whether each line of a record has, in some column, a value that is usual there in rows of one line: a label, not
    a part of a text that goes over several lines."""
    columns = range(len(parts[0]))
    return any(all(seen.get((i, part[i].strip('"')), 0) >= USUAL for part in parts) for i in columns)


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
