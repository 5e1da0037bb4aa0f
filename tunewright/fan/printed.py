"""Jobs as lines for a shell, for those who start processes in their own way: a Slurm array, xargs, another machine."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from tunewright.core.errors import RunWaits
from tunewright.core.words import counted
from tunewright.fan.jobs import Job


def shown(jobs: Sequence[Job]) -> RunWaits:
    """Prints a line for each job. Returns the exception by which the run ends until they are done."""
    for job in jobs:
        print(shlex.join(["python", "-m", job.module, *job.arguments]))  # noqa: T201
    return RunWaits(
        "RUN_WAITS",
        f"waits for {counted(len(jobs), 'training')}: run the lines above in any order, on any machine that sees "
        f"{jobs[0].folder.parent}, then the same command again.",
        where=str(jobs[0].folder.parent),
    )
