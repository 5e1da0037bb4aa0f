"""A stage as a value: its name and file, its inputs, when it is skipped, what it computes, and what it prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter

from tunewright.core.run_folder import Run
from tunewright.core.stage_names import BY_NAME
from tunewright.runtime.context import Work

# The input of a stage: the run and its data; also what follows from the model's files; everything, once there is a
# plan.
Needs = Literal["context", "setup", "work"]
Result = BaseModel | Sequence[BaseModel]


def never(work: Work) -> None:
    """For a stage that is never skipped."""


def nothing(result: Any) -> Sequence[str]:
    """For a stage that prints by itself, or has nothing to add."""
    return ()


@dataclass(frozen=True)
class Stage:
    """``name``: a name in `core.stage_names`, which also defines its file. ``record``: the type of the file's content;
    None if the stage writes the file itself. ``run`` gets the input that ``needs`` names, and returns the record.
    ``skip_reason``: why the config skips the stage, or None. ``lines``: what to print about the record."""

    name: str
    record: type[BaseModel] | TypeAdapter[Any] | None
    needs: Needs
    run: Callable[[Any], Result | None]
    skip_reason: Callable[[Work], str | None] = never
    lines: Callable[[Any], Sequence[str]] = nothing

    def file(self, run: Run) -> Path:
        """The file that is written last and marks the stage as done."""
        return run.path / BY_NAME[self.name].file
