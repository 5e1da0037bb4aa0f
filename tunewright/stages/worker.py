"""Trains a planned run in a process of its own: ``python -m tunewright.stages.worker RUN``.

Started by `stages.process`, which holds the lock (``--under-lock``), or by torchrun, a server or a sweep, in which case
it takes the lock itself. It writes only to the run folder; errors go to stderr as one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

from tunewright.core import records, run_folder
from tunewright.core.console import Console
from tunewright.core.errors import TunewrightError
from tunewright.core.run_folder import Run
from tunewright.stages import train
from tunewright.stages.runner import Runner, error_codes, resume
from tunewright.system import crowding
from tunewright.train import ranks


def work(run: Run, under_lock: bool) -> None:
    """Trains the run to the end of its plan, with the other processes that torchrun has started. Raises RUN_INCOMPLETE
    before there is a plan, RESUME_MISMATCH, RANKS_*, TRAIN_*."""
    run_folder.require(run, run.plan, "plan")
    runner = Runner(resume(run, Console(quiet=True), "worker"))
    with crowding.giving_way(), ranks.joined() as together:
        # The others write nothing, so one lock is enough.
        lock = run_folder.writing(run) if together.first and not under_lock else nullcontext()
        with lock, error_codes(run, "train"):
            if not run.training.exists():
                done = train.train(runner.work(), together)
                if together.first:
                    records.write(run.training, done)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tunewright.stages.worker", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--under-lock", action="store_true", help="the process that started this one holds the run's lock"
    )
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.umask(0o077)
    try:
        work(Run(given.run), given.under_lock)
    except TunewrightError as error:
        print(json.dumps(error.to_json()), file=sys.stderr)  # noqa: T201
        sys.exit(130 if error.code == "RUN_INTERRUPTED" else error.exit_code)


if __name__ == "__main__":
    main()
