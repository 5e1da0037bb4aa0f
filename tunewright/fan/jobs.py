"""A job: a module of this package with arguments, run as a process of its own; and where jobs run.

What a job has done is in its folder. A job that was killed is started again and continues there; one that has finished
is not started. So nothing is lost if the process that started them is killed, too.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunewright.core.errors import TrainError
from tunewright.core.run_folder import Run

Place = Literal["here", "local", "ray", "print"]
LAST = 65_536  # bytes of metrics.jsonl that certainly have a line
STOPPED = 130  # exit status after SIGTERM: it has saved


@dataclass(frozen=True)
class Where:
    """``on``: in this process ("here"), in processes of this machine, on a Ray cluster, or nowhere:
    their command lines are printed. ``at_once``: jobs at a time; None: as many as there are GPUs, otherwise one.
    ``attempt``: names whoever starts them; what it has started it may start again, on whichever machine. ``separate``:
    whether the run's own training, too, is a process of its own; ``agreed``: whether it may take hours."""

    on: Place = "here"
    at_once: int | None = None
    attempt: str = ""
    separate: bool = False
    agreed: bool = False


HERE = Where()


@dataclass(frozen=True)
class Job:
    """``folder``: a run's or a branch's. ``steps``: optimizer steps that it will take."""

    name: str
    module: str
    arguments: tuple[str, ...]
    folder: Path
    steps: int
    threads: int

    def step(self) -> int:
        """The last step that it took."""
        try:
            with open(Run(self.folder).metrics, "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - LAST))
                lines = file.read().split(b"\n")[:-1]  # without one that is not finished
        except FileNotFoundError:
            return 0
        return int(json.loads(lines[-1])["step"]) if lines else 0

    def saved(self) -> int:
        """The step from which it would continue."""
        return max((int(p.name.removeprefix("step-")) for p in self.folder.glob("checkpoints/step-*")), default=0)


@dataclass(frozen=True)
class Ended:
    """``status``: the exit status of a job's process, negative if a signal killed it. ``errors``: its last words."""

    job: Job
    status: int
    errors: str

    @property
    def killed(self) -> bool:
        """Whether a signal ended it: it may be started again."""
        return self.status < 0 or self.status == STOPPED

    @property
    def locked(self) -> bool:
        """Whether another process held its folder."""
        return '"RUN_LOCKED"' in self.errors

    def lost(self) -> TrainError:
        """The error of a job that is killed again and again before it has saved."""
        return TrainError(
            "TRAIN_WORKER",
            f"`{self.job.name}` was killed three times without reaching a new checkpoint, most recently after step "
            f"{self.job.step()} (status {self.status}).",
            where=str(self.job.folder),
            fix="if memory ran out, run fewer at once (--at-once) or set a smaller train.tokens_per_pass.",
        )
