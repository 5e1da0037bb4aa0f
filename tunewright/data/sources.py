"""Files -> Rows with their places: JSON Lines, JSON, CSV, Parquet, documents; several of them, compressed, behind URLs.

Nothing is skipped: every line becomes a Row, a Problem, or, if a setting asks for it, a Change that says what was done.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunewright.core.errors import DataError, Problem, data_error
from tunewright.core.locations import HUB, is_local, shown, title, without_query
from tunewright.core.words import counted
from tunewright.data.files import compression, content, csv_rows, documents, encoding, hub, json_rows, parquet, paths
from tunewright.data.files.rows import FileSettings, Item, Row
from tunewright.data.remedies.change import Change, dropped

__all__ = ["Change", "FileSettings", "Row", "Source", "read"]

AS_WRITTEN = FileSettings()


@dataclass(frozen=True)
class Source:
    """All rows of one or several files, in order. ``sha256``: of their contents; ``notices``: remarks for the user."""

    rows: tuple[Row, ...]
    sha256: str
    notices: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()


def read(given: str | Path | Sequence[str], how: FileSettings = AS_WRITTEN) -> Source:
    """Every row of the files that ``given`` names. Raises DataError with all problems, or MissingExtra."""
    names = [str(given)] if isinstance(given, str | Path) else list(given)
    files = _flat(paths.files_of(names))
    if files == names and documents.is_document(files[0]):
        fix = "give the folder that contains your documents, or, if it contains JSON rows, name it .jsonl."
        raise data_error("DATA_FORMAT_MISMATCH", "a single document is not a data set.", where=files[0], fix=fix)
    parts: list[Source] = []
    problems: list[Problem] = []
    for file in files:
        try:
            parts.append(_read_file(file, how))
        except DataError as error:
            problems += error.problems
    if not problems and not any(part.rows for part in parts):
        changes = [change for part in parts for change in part.changes if change.dropped]
        problems.append(nothing_left(changes) if changes else _empty(" and ".join(files[:3])))
    if problems:
        raise DataError(problems)
    hashes = b"".join(bytes.fromhex(part.sha256) for part in parts)
    return Source(
        rows=tuple(row for part in parts for row in part.rows),
        sha256=parts[0].sha256 if files == names[:1] or len(files) == 1 else hashlib.sha256(hashes).hexdigest(),
        notices=(*_ignored(names), *_joined(files, parts)),
        changes=tuple(change for part in parts for change in part.changes),
    )


def _flat(files: Sequence[str]) -> list[str]:
    """The files, with a folder replaced by the documents in it."""
    folders = {f for f in files if is_local(f) and content.is_folder(Path(f))}
    return [inner for f in files for inner in (documents.in_folder(Path(f)) if f in folders else [f])]


def _ignored(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        if is_local(name) and Path(name).is_dir() and (ignored := documents.ignored(Path(name))):
            more = f" and {counted(len(ignored) - 1, 'more file')}" if len(ignored) > 1 else ""
            what = f"only .txt and .md files are read, not {ignored[0]}{more}"
            yield f"{title(name)}: {what}; give rows as '{name}/*.jsonl'"


def _read_file(name: str, how: FileSettings) -> Source:
    if name.startswith(HUB):
        rows = hub.read(name, how)
        return _collected(rows.items, rows.sha256, name, how)
    try:
        actual = content.content(name, how)
        return _collected(_items(actual, name, how), actual.sha256, shown(name), how)
    except DataError as error:
        # A document is a row: one that cannot be read is left out like a row.
        if documents.is_document(name) and all(p.code in how.drop for p in error.problems):
            changes = tuple(dropped(p, how.drop[p.code]) for p in error.problems)
            return Source((), hashlib.sha256().hexdigest(), changes=changes)
        raise


def _items(actual: content.FileContent, file: str, how: FileSettings) -> Iterator[Item]:
    """The rows, problems, changes and notices of a file."""
    place, name = shown(file), without_query(file).lower()
    for suffix in compression.SUFFIXES:
        name = name.removesuffix(suffix)
    if name.endswith(".parquet") or actual.raw.startswith(content.PARQUET):
        yield from parquet.items(actual.raw, place, how)
        return
    text, changes = encoding.decode(actual.raw, place, how)
    yield from itertools.chain(actual.dropped, changes)
    if text.startswith(encoding.BOM):
        text = text.removeprefix(encoding.BOM)
        yield "the file begins with a byte order mark, which was skipped"
    if documents.is_document(name):
        yield from documents.items(text, place, how)
    elif name.endswith((".csv", ".tsv")):
        yield from csv_rows.items(text, place, how)
    else:
        yield from json_rows.items(text, place, how)


def _collected(items: Iterable[Item], sha256: str, place: str, how: FileSettings) -> Source:
    """The items of a file by kind. Raises DataError with the problems that no setting drops."""
    every = list(items)
    if not any(isinstance(item, Row | Problem) for item in every):
        every.append(_empty(place))
    if problems := [p for p in every if isinstance(p, Problem) and p.code not in how.drop]:
        raise DataError(problems)
    return Source(
        rows=tuple(item for item in every if isinstance(item, Row)),
        sha256=sha256,
        notices=tuple(item for item in every if isinstance(item, str)),
        changes=tuple(
            dropped(item, how.drop[item.code]) if isinstance(item, Problem) else item
            for item in every
            if isinstance(item, Problem | Change)
        ),
    )


def nothing_left(changes: Sequence[Change]) -> Problem:
    """The error for rows all of which a setting leaves out."""
    first = changes[0]
    message = f"none of {counted(len(changes), 'row')} can be read; the first: {first.message}"
    fix = f"{first.setting} would leave out all of them; correct the file."
    return Problem("DATA_EMPTY", message, first.where, fix)


def _empty(place: str) -> Problem:
    fix = "write one row per line; data.empty=drop leaves out empty files among several."
    return Problem("DATA_EMPTY", "the file has no rows.", place, fix)


def _joined(files: Sequence[str], parts: Sequence[Source]) -> Iterator[str]:
    """Each notice with the file that it is about, once for all files that have it."""
    about: dict[str, list[str]] = {}
    for file, part in zip(files, parts, strict=True):
        for notice in part.notices:
            about.setdefault(notice, []).append(title(file))
    for notice, names in about.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"{names[0]}{more}: {notice}"
