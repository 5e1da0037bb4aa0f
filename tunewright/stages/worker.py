"""Trains a planned run, or one of its branches, in a process of its own: ``python -m tunewright.stages.worker RUN``.

Started by `stages.process`, which holds the lock (``--under-lock``), or by torchrun, a server or a sweep, in which case
it takes the lock itself. It writes only to the run folder; errors go to stderr as one line of JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

from tunewright.core import records, run_folder
from tunewright.core.config import Plan
from tunewright.core.console import Console
from tunewright.core.errors import TunewrightError
from tunewright.core.run_folder import Run
from tunewright.runtime import branches
from tunewright.stages import train
from tunewright.stages.runner import Runner, error_codes, resume
from tunewright.system import crowding
from tunewright.train import ranks


def work(run: Run, under_lock: bool) -> None:
    """Trains the run to the end of its plan, with the other processes that torchrun has started. Raises RUN_INCOMPLETE
    before there is a plan, RESUME_MISMATCH, RANKS_*, TRAIN_*."""
    run_folder.require(run, run.plan, "plan")
    runner = Runner(resume(run, Console(quiet=True), "worker"))
    plan = records.read(run.plan, Plan)
    step_seconds = plan.estimate.train_seconds / plan.steps if plan.estimate else 0.0
    with crowding.giving_way(), ranks.joined(step_seconds) as together:
        # The others write nothing, so one lock is enough.
        lock = run_folder.writing(run, ranks.attempt()) if together.first and not under_lock else nullcontext()
        with lock, error_codes(run, "train"):
            if not run.training.exists():
                done = train.train(runner.work(), together)
                if together.first:
                    records.write(run.training, done)


def branch(run: Run, name: str, fraction: float, attempt: str) -> None:
    """Trains a branch to the end, or to a ``fraction`` of its steps. Raises RUN_LOCKED, RUN_INCOMPLETE, TRAIN_*."""
    setup = Runner(resume(run, Console(quiet=True), "worker")).setup()
    with crowding.giving_way(), error_codes(run, "train"):
        for error in branches.train(setup, [name], fraction, attempt).values():
            raise error


def end_with(parent: int) -> None:
    """Have Linux send SIGTERM, at which training is saved, when the process that started this one ends."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(130)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tunewright.stages.worker", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--under-lock", action="store_true", help="the process that started this one holds the run's lock"
    )
    parser.add_argument("--branch", help="train this branch, and not the run itself")
    parser.add_argument("--fraction", type=float, default=1.0, help="of the branch's steps: train so far, then pause")
    parser.add_argument("--attempt", default="", help="names who starts this process, also after it was killed")
    parser.add_argument("--parent", type=int, help="the process that started this one; end when it ends")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.umask(0o077)
    if given.parent is not None:
        end_with(given.parent)
    try:
        if given.branch is None:
            work(Run(given.run), given.under_lock)
        else:
            branch(Run(given.run), given.branch, given.fraction, given.attempt)
    except TunewrightError as error:
        print(json.dumps(error.to_json()), file=sys.stderr)  # noqa: T201
        sys.exit(130 if error.code == "RUN_INTERRUPTED" else error.exit_code)


if __name__ == "__main__":
    main()
