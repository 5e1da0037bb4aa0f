"""A job: a module of this package with arguments, run as a process of its own; and where jobs run.

What a job has done is in its folder. A job that was killed is started again and continues there; one that has finished
is not started. So nothing is lost if the process that started them is killed, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunewright.core import records
from tunewright.core.errors import TrainError
from tunewright.core.records import METRICS, StepLine
from tunewright.core.run_folder import Run

Place = Literal["here", "local", "ray", "print"]
PLACES: tuple[Place, ...] = ("here", "local", "ray", "print")


@dataclass(frozen=True)
class Where:
    """``on``: in this process one after another ("here"), in processes of this machine, on a Ray cluster, or nowhere:
    their command lines are printed. ``at_once``: jobs at a time; None: as many as there are GPUs, otherwise one.
    ``gpus_each``: GPUs of each job, where there are any. ``attempt``: of the process that starts them; what it started
    itself it may start again, on whichever machine. ``separate``: whether the run's own training, too, is a process of
    its own; ``agreed``: whether it may take hours."""

    on: Place = "here"
    at_once: int | None = None
    gpus_each: int = 1
    attempt: str = ""
    separate: bool = False
    agreed: bool = False

    def threads(self, cores: int) -> int:
        """CPU threads of each job."""
        return max(1, cores // (self.at_once or 1)) if self.on == "local" else cores


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
        lines = records.read_lines(Run(self.folder).metrics, METRICS)
        return max((line.step for line in lines if isinstance(line, StepLine)), default=0)


@dataclass(frozen=True)
class Ended:
    """``status``: the exit status of a job's process, negative if a signal killed it. ``errors``: its last words."""

    job: Job
    status: int
    errors: str

    @property
    def killed(self) -> bool:
        """Whether it may be started again: it did not end by itself."""
        return self.status < 0

    def lost(self) -> TrainError:
        """The error of a job that is killed again and again at the same step."""
        return TrainError(
            "TRAIN_WORKER",
            f"`{self.job.name}` was killed three times after step {self.job.step()} (signal {-self.status}).",
            where=str(self.job.folder),
            fix="if memory ran out, run fewer at once (--at-once) or set a smaller train.tokens_per_pass.",
        )
