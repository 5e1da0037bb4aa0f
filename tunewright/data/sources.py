"""Files -> Rows with their locations. JSON Lines, JSON array, CSV, Parquet, folders of .txt/.md documents.

Reads are bounded (a line is at most 16 MiB) and strict where Python's own readers are lax: duplicate keys, NaN, huge
integers, deep nesting and lone surrogates are problems with a location, not values. Nothing is skipped: every line
becomes a Row or a Problem.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.core.errors import DataError, MissingExtra, Problem, data_error
from tunewright.core.pii import masked

MAX_LINE = 16 * 1024 * 1024
MAX_DIGITS = 300
MAX_DEPTH = 100
DOCUMENTS = (".txt", ".md")
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip (or xlsx)",
    b"PAR1": "Parquet",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f]")


@dataclass(frozen=True)
class Row:
    """One raw row. ``where`` is ``file:line`` (the file alone for a document)."""

    data: dict[str, Any]
    where: str


@dataclass(frozen=True)
class Source:
    """All rows of one file or folder. ``sha256``: of the bytes read, in order; ``notices``: remarks for the user."""

    path: str
    kind: str
    rows: tuple[Row, ...]
    sha256: str
    notices: tuple[str, ...] = ()


def read(path: str | Path) -> Source:
    """Every row of ``path``. Raises DataError with all problems, or MissingExtra for Parquet without pyarrow."""
    path = Path(path)
    kind = _kind(path)
    if kind == "folder":
        return _documents(path)
    if kind == "parquet":
        return _parquet(path)
    raw = _text_bytes(path)
    digest = hashlib.sha256(raw).hexdigest()
    notices: list[str] = []
    if raw.startswith(b"\xef\xbb\xbf"):
        raw, notices = raw[3:], ["the file begins with a UTF-8 byte order mark, which was skipped"]
    text = _decode(raw, path)
    problems: list[Problem] = []
    if kind == "csv":
        rows = list(_csv(text, path, problems, notices))
    elif text.lstrip()[:1] == "[":
        rows = list(_json_array(text, path, problems))
        notices.append("the file is one JSON array; its elements are the rows (located as `[index]`)")
    else:
        rows = list(_json_lines(text, path, problems))
    if not problems and not rows:
        problems.append(Problem("DATA_EMPTY", "the file has no rows.", str(path), "write one row per line."))
    if problems:
        raise DataError(problems)
    return Source(str(path), kind, tuple(rows), digest, tuple(notices))


def _kind(path: Path) -> str:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        broken = path.is_symlink()
        raise data_error(
            "DATA_UNREADABLE" if not isinstance(error, FileNotFoundError) else "DATA_NOT_A_FILE",
            "this is a broken symbolic link." if broken else f"{error.strerror or 'cannot be read'}.".capitalize(),
            where=str(path),
            fix="check the path.",
        ) from None
    if stat.S_ISDIR(mode):
        return "folder"
    if not stat.S_ISREG(mode):
        raise data_error(
            "DATA_NOT_A_FILE",
            "this is not a regular file.",
            where=str(path),
            fix="give a JSONL, CSV or Parquet file, or a folder of .txt/.md documents.",
        )
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return "parquet"
    if suffix in (".csv", ".tsv"):
        return "csv"
    if suffix in DOCUMENTS:
        raise data_error(
            "DATA_FORMAT_MISMATCH",
            "a single document is not a data set.",
            where=str(path),
            fix="give the folder that contains your documents.",
        )
    return "jsonl"


def _text_bytes(path: Path) -> bytes:
    chunks: list[bytes] = []
    try:
        with open(path, "rb") as file:
            head = file.read(8)
            for magic, name in _MAGIC.items():
                if head.startswith(magic):
                    raise data_error(
                        "DATA_NOT_TEXT",
                        f"the content is {name}, not text.",
                        where=str(path),
                        fix="decompress it first" + (", or name it .parquet." if name == "Parquet" else "."),
                    )
            file.seek(0)
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), 1):
                if len(line) > MAX_LINE:
                    raise data_error(
                        "DATA_LINE_TOO_LONG",
                        "the line is longer than 16 MiB.",
                        where=f"{path}:{number}",
                        fix="write one row per line; split long documents.",
                    )
                chunks.append(line)
    except OSError as error:
        raise data_error(
            "DATA_UNREADABLE", f"{error.strerror}.", where=str(path), fix="check its permissions."
        ) from None
    return b"".join(chunks)


def _decode(raw: bytes, path: Path) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        guess = (
            "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") or raw[:200].count(0) > 20 else "latin-1 or Windows-1252"
        )
        raise data_error(
            "DATA_ENCODING",
            f"byte {error.start} is not valid UTF-8 (the file looks like {guess}).",
            where=f"{path}:{line}",
            fix=f"convert it with `iconv -f {guess.split()[0]} -t UTF-8`.",
        ) from None


class _BadValue(ValueError):
    def __init__(self, code: str, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(message)


def _pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(items)
    if len(value) < len(items):
        duplicate = next(k for i, (k, _) in enumerate(items) if k in dict(items[:i]))
        raise _BadValue("DATA_DUPLICATE_KEY", f"the key {duplicate!r} occurs twice in one object.")
    return value


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _BadValue("DATA_NUMBER_NOT_FINITE", f"{text[:30]} is not a finite number.")
    return value


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise _BadValue("DATA_NUMBER_TOO_LARGE", f"an integer has {len(text)} digits.")
    return int(text)


def _constant(text: str) -> float:
    raise _BadValue("DATA_NUMBER_NOT_FINITE", f"{text} is not valid JSON.")


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_float=_number, parse_int=_integer, parse_constant=_constant)


def _check_texts(value: Any, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise _BadValue("DATA_TOO_DEEP", f"the row is nested more than {MAX_DEPTH} levels deep.")
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            _check_text(key)
            _check_texts(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_texts(inner, depth + 1)


def _check_text(text: str) -> None:
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise _BadValue("DATA_UNICODE", "the text contains a lone surrogate, such as \\ud800.")
    if match := _CONTROL.search(text):
        raise _BadValue("DATA_CONTROL_CHAR", f"the text contains the control character U+{ord(match[0]):04X}.")


_FIXES = {
    "DATA_DUPLICATE_KEY": "keep one of them.",
    "DATA_NUMBER_NOT_FINITE": "write null or a finite number.",
    "DATA_NUMBER_TOO_LARGE": "write long digit strings as text.",
    "DATA_TOO_DEEP": "flatten the row.",
    "DATA_UNICODE": "write the character itself, or remove it.",
    "DATA_CONTROL_CHAR": "remove it.",
}


def _parse(text: str, where: str, *, last: bool, problems: list[Problem]) -> Iterator[Row]:
    """The row of one JSON text, or a problem. ``last``: it ends the file, which may have been truncated."""
    try:
        value = _DECODER.decode(text)
        _check_texts(value)
    except _BadValue as error:
        problems.append(Problem(error.code, error.message, where, _FIXES[error.code]))
    except json.JSONDecodeError as error:
        cut = last and error.pos >= len(text.rstrip()) - 1
        start = max(0, error.pos - 500)  # far enough back to recognise private data that the excerpt cuts off
        around, at = masked(text[start : error.pos + 500], in_place=True), error.pos - start
        excerpt = around[max(0, at - 20) : at + 20].strip()
        message = f"{error.msg} at `{excerpt}`." if excerpt else f"{error.msg}."
        if "control character" in error.msg:
            problems.append(
                Problem("DATA_CONTROL_CHAR", message, f"{where}:{error.pos + 1}", "escape it (\\n, \\t) or remove it.")
            )
        else:
            problems.append(
                Problem(
                    "DATA_JSON_INVALID",
                    message,
                    f"{where}:{error.pos + 1}",
                    "the file looks truncated; copy it again."
                    if cut or ("Unterminated" in error.msg and last)
                    else "correct the JSON of this line.",
                )
            )
    except RecursionError:
        problems.append(Problem("DATA_TOO_DEEP", "the row is nested too deeply.", where, "flatten it."))
    else:
        if isinstance(value, dict):
            yield Row(value, where)
        else:
            problems.append(
                Problem(
                    "DATA_ROW_NOT_OBJECT",
                    f"a row must be a JSON object, not {_type_name(value)}.",
                    where,
                    'write {"field": ...}.',
                )
            )


def _type_name(value: Any) -> str:
    return {
        list: "a list",
        str: "a string",
        type(None): "null",
        bool: "true/false",
        int: "a number",
        float: "a number",
        dict: "an object",
    }[type(value)]


def _json_lines(text: str, path: Path, problems: list[Problem]) -> Iterator[Row]:
    # Only "\n" ends a row: a JSON string may contain U+2028 and the like, at which str.splitlines would split.
    lines = text.split("\n")
    nonempty = [i for i, line in enumerate(lines) if line.strip()]
    for i in nonempty:
        yield from _parse(lines[i].strip("\r"), f"{path}:{i + 1}", last=i == nonempty[-1], problems=problems)


def _json_array(text: str, path: Path, problems: list[Problem]) -> Iterator[Row]:
    try:
        values = _DECODER.decode(text)
    except _BadValue as error:
        problems.append(Problem(error.code, error.message, str(path), _FIXES[error.code]))
        return
    except json.JSONDecodeError as error:
        fix = "write one object per line, or one complete JSON array."
        problems.append(Problem("DATA_JSON_INVALID", f"{error.msg}.", f"{path}:{error.lineno}:{error.colno}", fix))
        return
    except RecursionError:
        problems.append(Problem("DATA_TOO_DEEP", "the rows are nested too deeply.", str(path), "flatten them."))
        return
    for i, value in enumerate(values):
        where = f"{path}[{i}]"
        if not isinstance(value, dict):
            problems.append(
                Problem(
                    "DATA_ROW_NOT_OBJECT",
                    f"a row must be a JSON object, not {_type_name(value)}.",
                    where,
                    "write one object per row.",
                )
            )
            continue
        try:
            _check_texts(value)
        except _BadValue as error:
            problems.append(Problem(error.code, error.message, where, _FIXES[error.code]))
        else:
            yield Row(value, where)


def _csv(text: str, path: Path, problems: list[Problem], notices: list[str]) -> Iterator[Row]:
    """Every cell is read as text: "NA" remains a label, "007" keeps its zeros."""
    header_line = text.split("\n", 1)[0]
    delimiter = max(",;\t|", key=header_line.count)
    if delimiter != "," and header_line.count(delimiter):
        notices.append(f"columns are separated by {delimiter!r}")
    csv.field_size_limit(MAX_LINE)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)

    def numbered() -> Iterable[tuple[int, list[str]]]:
        while True:
            line = reader.line_num + 1
            try:
                yield line, next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                problems.append(
                    Problem(
                        "DATA_CSV", f"{error}.", f"{path}:{line}", 'close the quote; write "" for a quote inside one.'
                    )
                )
                return

    header: list[str] | None = None
    for line, cells in numbered():
        if not any(c.strip() for c in cells):
            continue
        if header is None:
            header = [c.strip() for c in cells]
            duplicate = next((h for i, h in enumerate(header) if h in header[:i]), None)
            if "" in header or duplicate is not None:
                what = f"the column {duplicate!r} occurs twice" if duplicate else "a column has no name"
                problems.append(
                    Problem(
                        "DATA_CSV", f"{what}.", f"{path}:{line}", "give every column a unique name in the first line."
                    )
                )
                return
            continue
        if len(cells) != len(header):
            problems.append(
                Problem(
                    "DATA_CSV",
                    f"the row has {len(cells)} cells, but the header has {len(header)}.",
                    f"{path}:{line}",
                    "quote cells that contain the separator.",
                )
            )
            continue
        try:
            for cell in cells:
                _check_text(cell)
        except _BadValue as error:
            problems.append(Problem(error.code, error.message, f"{path}:{line}", _FIXES[error.code]))
            continue
        yield Row(dict(zip(header, cells, strict=True)), f"{path}:{line}")


def _parquet(path: Path) -> Source:
    try:
        import pyarrow.parquet as pq
        from pyarrow import ArrowException
    except ImportError:
        raise MissingExtra("pyarrow", "reading Parquet", "pip install 'tunewright[parquet]'") from None
    try:
        table = pq.read_table(path)
    except (ArrowException, OSError) as error:
        raise data_error(
            "DATA_NOT_TEXT",
            f"this is not a valid Parquet file: {str(error).splitlines()[0]}",
            where=str(path),
            fix="export it again, or use JSONL.",
        ) from None
    rows, problems = [], []
    for i, value in enumerate(table.to_pylist()):
        where = f"{path}:{i + 1}"
        try:
            _check_texts(value)
        except _BadValue as error:
            problems.append(Problem(error.code, error.message, where, _FIXES[error.code]))
        rows.append(Row({k: v for k, v in value.items() if v is not None}, where))
    if not rows:
        problems.append(Problem("DATA_EMPTY", "the file has no rows.", str(path)))
    if problems:
        raise DataError(problems)
    return Source(str(path), "parquet", tuple(rows), hashlib.sha256(path.read_bytes()).hexdigest())


def _documents(folder: Path) -> Source:
    """One row per document. Symbolic links are not followed; empty documents are problems."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in DOCUMENTS and p.is_file() and not p.is_symlink())
    if not files:
        raise data_error(
            "DATA_EMPTY",
            "the folder contains no .txt or .md file.",
            where=str(folder),
            fix="give a folder of documents, or a data file.",
        )
    digest = hashlib.sha256()
    rows: list[Row] = []
    problems: list[Problem] = []
    for file in files:
        try:
            raw = _text_bytes(file)
            text = _decode(raw.removeprefix(b"\xef\xbb\xbf"), file)
            _check_text(text)
        except DataError as error:
            problems += error.problems
            continue
        except _BadValue as error:
            problems.append(Problem(error.code, error.message, str(file), _FIXES[error.code]))
            continue
        digest.update(hashlib.sha256(raw).digest())
        if text.strip():
            rows.append(Row({"text": text}, str(file)))
        else:
            problems.append(Problem("DATA_EMPTY", "the document is empty.", str(file), "remove it."))
    if problems:
        raise DataError(problems)
    return Source(str(folder), "folder", tuple(rows), digest.hexdigest())
