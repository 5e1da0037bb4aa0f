"""A stage as a value: one name, the file that marks it done, what it is given, when it is wanted, and what it says afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter

from tunewright.core.run_folder import Run
from tunewright.run.context import Work

# What a stage is given: the run and its data; also what follows from the model's files; everything, once there is a plan.
Needs = Literal["context", "setup", "work"]
Result = BaseModel | Sequence[BaseModel]


def always(work: Work) -> None:
    """A stage that every run has."""


def says_nothing(result: Any) -> Sequence[str]:
    """A stage that prints for itself, or has nothing to add."""
    return ()


@dataclass(frozen=True)
class Stage:
    """``name`` is the word for it everywhere: on the command line, in events and messages, as a key of verdict.json. ``done``
    is the same as a participle, for `runs list`. ``file``: below the run folder; written last, so it marks the stage as done.
    ``record``: what it holds; None where the stage writes the file itself. ``run`` is given what ``needs`` says and returns the
    result. ``not_wanted``: why the config leaves the stage out, or None. ``lines``: what to print about the result.
    ``evidence``: verdict.json holds a copy of the record."""

    name: str
    done: str
    file: str
    record: type[BaseModel] | TypeAdapter[Any] | None
    needs: Needs
    run: Callable[[Any], Result | None]
    not_wanted: Callable[[Work], str | None] = always
    lines: Callable[[Any], Sequence[str]] = says_nothing
    evidence: bool = False

    def path(self, run: Run) -> Path:
        """The file that marks the stage as done."""
        return run.path / self.file

    def is_done(self, run: Run) -> bool:
        return self.path(run).exists()
