"""A stage as a value: its name and file, what it is given, when it is wanted, what it computes, and what it prints
about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter

from tunewright.core.run_folder import Run
from tunewright.core.stage_names import BY_NAME
from tunewright.runtime.context import Work

# What a stage is given: the run and its data; also what follows from the model's files; everything, once there is a
# plan.
Needs = Literal["context", "setup", "work"]
Result = BaseModel | Sequence[BaseModel]


def always(work: Work) -> None:
    """Of a stage that every run has."""


def nothing(result: Any) -> Sequence[str]:
    """Of a stage that prints for itself, or has nothing to add."""
    return ()


@dataclass(frozen=True)
class Stage:
    """``name``: a name of `core.stage_names`, which knows its file. ``record``: what the file holds; None where the
    stage writes it itself. ``run`` is given what ``needs`` says, and returns the record. ``not_wanted``: why the config
    leaves the stage out, or None. ``lines``: what to print about the record."""

    name: str
    record: type[BaseModel] | TypeAdapter[Any] | None
    needs: Needs
    run: Callable[[Any], Result | None]
    not_wanted: Callable[[Work], str | None] = always
    lines: Callable[[Any], Sequence[str]] = nothing

    def file(self, run: Run) -> Path:
        """Written last, so it marks the stage as done."""
        return run.path / BY_NAME[self.name].file
