"""A stage as a value: its name, what it computes and from what, when it is skipped, and what it prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from tunewright.core.run_folder import Run
from tunewright.core.stage_names import BY_NAME
from tunewright.runtime.context import Context, Setup, Work

Result = BaseModel | Sequence[BaseModel]


class StageInputs(Protocol):
    """What a run offers to its stages. Each part is made when a stage first asks for it."""

    @property
    def context(self) -> Context:
        """The run and its data."""
        ...

    def setup(self) -> Setup:
        """Also what follows from the model's files."""
        ...

    def work(self) -> Work:
        """Everything. Only for stages after `plan`."""
        ...


def nothing(result: Any) -> Sequence[str]:
    """For a stage that prints by itself, or has nothing to add."""
    return ()


@dataclass(frozen=True)
class Stage:
    """``name``: a name in `core.stage_names`, which also defines its file. ``run`` returns the content of that file, or
    None if it has written the file itself. ``lines``: what to print about the result, in ``style``.

    ``skip_reason``: why the config skips the stage, or None; the stage's file then holds the reason.
    ``run_separately``: the same as ``run`` in a process of its own, for `--separate`; it writes the file too.
    """

    name: str
    run: Callable[[StageInputs], Result | None]
    skip_reason: Callable[[Work], str | None] | None = None
    run_separately: Callable[[Context], Result] | None = None
    lines: Callable[[Any], Sequence[str]] = nothing
    style: str = ""

    def file(self, run: Run) -> Path:
        """The file that is written last and marks the stage as done."""
        return run.path / BY_NAME[self.name].file
