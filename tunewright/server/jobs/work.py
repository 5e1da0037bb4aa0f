"""Runs one job to its report, in a process of its own: ``python -m tunewright.server.jobs.work CONFIG RUNS NAME``.

It writes only to the run folder, and continues there if it was stopped. Errors go to stderr as one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from tunewright.core.config import load
from tunewright.core.console import Console
from tunewright.core.errors import TunewrightError
from tunewright.core.run_folder import ATTEMPT
from tunewright.stages.runner import Runner, start
from tunewright.stages.worker import end_with


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tunewright.server.jobs.work", description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("name")
    parser.add_argument("--parent", type=int, required=True, help="the server; end when it ends")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.umask(0o077)
    end_with(given.parent)
    os.environ.setdefault(ATTEMPT, given.name)  # a server on another host may continue the job
    try:
        context = start(load(given.config), given.name, given.runs, Console(quiet=True), "tunewright serve")
        Runner(context).advance("report")
    except TunewrightError as error:
        print(json.dumps(error.to_json()), file=sys.stderr)  # noqa: T201
        sys.exit(130 if error.code == "RUN_INTERRUPTED" else error.exit_code)
    except KeyboardInterrupt:  # between two stages
        sys.exit(130)


if __name__ == "__main__":
    main()
