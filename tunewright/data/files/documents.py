"""Documents -> rows: .txt and .md files, each of them one row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tunewright.core.errors import Problem, data_error
from tunewright.data.files.rows import FileSettings, Item, Row
from tunewright.data.files.values import FIXES, BadValue, changes_of, clean_text

SUFFIXES = (".txt", ".md")
ROWS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def in_folder(folder: Path) -> list[str]:
    """The documents in a folder and its subfolders, sorted. Symbolic links are not followed, and names that begin with
    a dot are left out, as by patterns."""
    every = (p for p in folder.rglob("*") if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    files = sorted(p for p in every if is_document(p.name) and p.is_file() and not p.is_symlink())
    if not files:
        raise data_error(
            "DATA_EMPTY",
            "the folder contains no .txt or .md file.",
            where=str(folder),
            fix=f"give a folder of documents, or the data files in it: '{folder}/*.jsonl'.",
        )
    return [str(p) for p in files]


def ignored(folder: Path) -> list[str]:
    """The files of rows in a folder of documents, which are not read."""
    return sorted(p.name for p in folder.iterdir() if p.suffix.lower() in ROWS)


def is_document(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def items(text: str, name: str, how: FileSettings) -> Iterator[Item]:
    """The row of a document, or what is wrong with it."""
    try:
        clean, removed = clean_text(text, how.control)
    except BadValue as error:
        yield Problem(error.code, error.message, name, FIXES[error.code])
        return
    if not clean.strip():
        fix = "set data.empty=drop to leave such documents out."
        yield Problem("DATA_EMPTY_TARGET", "the document is empty.", name, fix)
        return
    yield from changes_of(removed, name, how.control)
    yield Row({"text": clean}, name)
