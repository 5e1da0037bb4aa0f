"""Rows: what files contain, and how files are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tunewright.core.errors import Problem
from tunewright.data.remedies.change import Change

Control = Literal["error", "strip", "space"]
AUTO = "auto"  # an encoding: UTF-8, or what a file that is not UTF-8 seems to be


@dataclass(frozen=True)
class Row:
    """One raw row. ``where`` is ``file:line`` (the file alone for a document)."""

    data: dict[str, Any]
    where: str


@dataclass(frozen=True)
class FileSettings:
    """How files are read. ``encoding``: a codec of Python, or "auto"; ``control``: what becomes of control characters
    and lone surrogates; ``drop``: the codes of problems for which a row is left out, each with the setting that says
    so."""

    encoding: str = "utf-8"
    control: Control = "error"
    drop: Mapping[str, str] = field(default_factory=dict)


# What a reader of a file gives, in the order of the file; a text is a notice about the file.
Item = Row | Problem | Change | str
