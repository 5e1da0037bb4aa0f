"""The names in a setting -> the files that they name, in order: those of a list as it is, those of a pattern sorted."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from tunewright.core.errors import DataError, data_error
from tunewright.core.locations import HUB, is_local, is_pattern, is_url, shown
from tunewright.data.files import hub, remote


def files_of(names: Iterable[str]) -> list[str]:
    """Files, folders, URLs and Hub data sets. Raises DATA_NOT_A_FILE for a pattern that matches nothing, and
    DATA_FILE_TWICE."""
    files = [file for name in names for file in _matching(name)]
    seen: dict[str, str] = {}
    for file in files:
        key = _identity(file)
        if key in seen:
            raise data_error(
                "DATA_FILE_TWICE",
                "the file is listed twice, or matched by two patterns.",
                where=shown(file),
                fix="list it once; each of its rows would count twice.",
            )
        seen[key] = file
    return files


def _identity(file: str) -> str:
    """Equal for names of one file."""
    if file.startswith(HUB):
        return repr(hub.parse(file))
    return os.path.realpath(file) if is_local(file) else file


def _matching(name: str) -> list[str]:
    if is_url(name):
        return remote.matching(name) or _no_match(name)
    if not is_local(name) or not is_pattern(name) or os.path.lexists(name):
        return [name]
    return sorted(p for p in glob.glob(name, recursive=True) if Path(p).is_file()) or _no_match(name)


def would_match(pattern: str, file: Path) -> bool:
    """Whether a pattern would match a file that need not exist, by the rules of `glob`."""
    return _parts_match(Path(os.path.abspath(pattern)).parts, Path(os.path.abspath(file)).parts)


def _parts_match(patterns: Sequence[str], names: Sequence[str]) -> bool:
    if not patterns or not names:
        return not names and all(p == "**" for p in patterns)
    visible = not names[0].startswith(".") or patterns[0].startswith(".")
    if patterns[0] == "**":
        return _parts_match(patterns[1:], names) or (visible and _parts_match(patterns, names[1:]))
    return visible and fnmatch.fnmatch(names[0], patterns[0]) and _parts_match(patterns[1:], names[1:])


def _no_match(name: str) -> list[str]:
    error: DataError = data_error(
        "DATA_NOT_A_FILE",
        "no file matches this pattern.",
        where=shown(name),
        fix="check it with `ls`; * and ? match within a name, ** matches folders.",
    )
    raise error
