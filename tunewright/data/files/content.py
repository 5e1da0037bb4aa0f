"""The bytes of one file, wherever it is: read in pieces, decompressed, with a limit on the length of a line."""

from __future__ import annotations

import hashlib
import itertools
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tunewright.core.errors import DataError, Problem, data_error
from tunewright.core.locations import is_url, shown
from tunewright.data.files import compression, remote
from tunewright.data.files.rows import FileSettings

CHUNK = 1 << 20
MAX_LINE = 16 * 1024 * 1024
PARQUET = b"PAR1"
# The beginning of an array, or of an object with one list of rows: both may be a single line, however long.
_ARRAY = re.compile(rb'[\xef\xbb\xbf\xff\xfe\0\s]*(?:\[|\{\s*"(?!messages"|conversations?")[^"]{1,100}"\s*:\s*\[\s*\{)')


@dataclass(frozen=True)
class FileContent:
    """``raw``: the content of a file, decompressed; ``sha256``: of ``raw`` as it was before lines were dropped."""

    raw: bytearray
    sha256: str
    dropped: tuple[Problem, ...] = ()


def content(name: str, how: FileSettings) -> FileContent:
    """Reads a file. Raises DataError; MissingExtra if a package is needed to open or decompress it."""
    source = remote.chunks(name) if is_url(name) else _chunks(Path(name))
    head = next(source, b"")
    chunks = compression.expanded(head, itertools.chain([head], source), shown(name))
    first = next(chunks, b"")
    compression.check_expanded(first, shown(name))
    chunks = itertools.chain([first], chunks)
    if first.startswith(PARQUET) or _ARRAY.match(first):
        return _everything(chunks, name)
    return _lines(chunks, name, how)


def is_folder(path: Path) -> bool:
    """Whether a path is a folder, and not a file. Raises DATA_NOT_A_FILE or DATA_UNREADABLE if it is neither."""
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
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        fix = "give a JSONL, CSV or Parquet file, or a folder of .txt/.md documents."
        raise data_error("DATA_NOT_A_FILE", "this is not a regular file.", where=str(path), fix=fix)
    return stat.S_ISDIR(mode)


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except OSError as error:
        raise data_error(
            "DATA_UNREADABLE", f"{error.strerror}.", where=str(path), fix="check its permissions."
        ) from None


def _everything(chunks: Iterator[bytes], name: str) -> FileContent:
    raw = bytearray()
    for chunk in chunks:
        raw += chunk
        if len(raw) > compression.MAX_EXPANDED:
            message = f"the file is larger than {compression.MAX_EXPANDED >> 30} GiB."
            fix = "split it into several files, or write one row per line (JSON Lines)."
            raise data_error("DATA_TOO_LARGE", message, where=shown(name), fix=fix)
    return FileContent(raw, hashlib.sha256(raw).hexdigest())


def _lines(chunks: Iterator[bytes], name: str, how: FileSettings) -> FileContent:
    """A file of lines. A line over the limit is an error, or is left empty if such rows are dropped."""
    raw, digest = bytearray(), hashlib.sha256()
    dropped: list[Problem] = []
    start, number, skipping = 0, 1, False  # of the line that is being read
    for chunk in chunks:
        digest.update(chunk)
        if skipping and b"\n" not in chunk:
            continue
        at = len(raw)
        raw += chunk[chunk.index(b"\n") :] if skipping else chunk
        end = raw.find(b"\n", at)
        skipping = False
        if (end if end >= 0 else len(raw)) - start > MAX_LINE:
            problem = _too_long(f"{shown(name)}:{number}")
            if problem.code not in how.drop:
                raise DataError([problem])
            dropped.append(problem)
            del raw[start : end if end >= 0 else None]
            skipping = end < 0
        if (last := raw.rfind(b"\n", start)) >= 0:
            number += raw.count(b"\n", start)
            start = last + 1
    return FileContent(raw, digest.hexdigest(), tuple(dropped))


def _too_long(where: str) -> Problem:
    fix = "set data.invalid=drop to leave such rows out, or split long documents."
    return Problem("DATA_LINE_TOO_LONG", f"the line is longer than {MAX_LINE >> 20} MiB.", where, fix)
