"""Jobs as lines for a shell, for those who start processes in their own way: a Slurm array, xargs, another machine."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from tunewright.core.errors import RunWaits
from tunewright.core.words import counted
from tunewright.fan.jobs import Job


def shown(jobs: Sequence[Job]) -> RunWaits:
    """Prints a line for each job. Returns the exception by which the run ends until they are done."""
    for job in jobs:
        print(shlex.join([sys.executable, "-m", job.module, *job.arguments]))  # noqa: T201
    run = jobs[0].folder.parents[1]
    return RunWaits(
        "RUN_WAITS",
        f"waits for {counted(len(jobs), 'training')}: run the lines above in any order, on any machine that has {run}, "
        f"the model and the data under the same paths; then repeat this command.",
        where=str(run),
    )
