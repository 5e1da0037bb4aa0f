"""Runs one job to its report, in a process of its own: ``python -m tunewright.server.jobs.work CONFIG RUNS NAME``.

It publishes the adapter on another program's engine, if there is one. It writes only to the run folder, and continues
there if it was stopped. Errors go to stderr as one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from tunewright.core import records
from tunewright.core.config import Config, Plan, load
from tunewright.core.console import Console
from tunewright.core.errors import TunewrightError
from tunewright.core.run_folder import ATTEMPT, Run
from tunewright.data.remedies.prepared import SIDES
from tunewright.model.decoding.stack import supports
from tunewright.runtime.context import Context
from tunewright.server.engine.vllm import Remote, from_arguments, is_away
from tunewright.server.jobs.publish import publish
from tunewright.stages.runner import Runner, resume, start
from tunewright.stages.worker import end_with

RETRY_SECONDS = 15.0


def open_run(config: Config, run: Run) -> Context:
    """A new run, or the one that was begun; its files may have moved since, with the server's home."""
    console, command = Console(quiet=True), "tunewright serve"
    if not run.config.is_file():
        shutil.rmtree(run.path, ignore_errors=True)  # an attempt was stopped while it began
        return start(config, run.name, run.path.parent, console, command)
    paths = {side: getattr(config.data, side) for side in SIDES}
    return resume(run, console, command, [f"data.{side}={json.dumps(path)}" for side, path in paths.items() if path])


def publish_with_retry(runner: Runner, remote: Remote) -> None:
    """Waits until vLLM can be reached: nothing is lost while it is away. Raises CONSUMER_DIFFERS, and REMOTE_FAILED if
    it refuses the adapter."""
    run = runner.context.run
    adapter = records.read(run.plan, Plan).adapter
    if not (supports(adapter) and adapter.uniform):
        return
    again = False
    while True:
        try:
            publish(runner, remote)
            run.event("published", engine=remote.url)
            return
        except TunewrightError as error:
            if error.code != "REMOTE_FAILED" or again:
                raise
        again = not is_away(remote)  # once more: it may just have been restarted
        if not again:
            run.event("engine_away")
            while is_away(remote):
                time.sleep(RETRY_SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tunewright.server.jobs.work", description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("name")
    parser.add_argument("--parent", type=int, required=True, help="the server; end when it ends")
    parser.add_argument("--engine", help="of another program, on which the adapter is published")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.umask(0o077)
    end_with(given.parent)
    os.environ.setdefault(ATTEMPT, given.name)  # a server on another host may continue the job
    try:
        runner = Runner(open_run(load(given.config), Run(given.runs / given.name)))
        runner.advance("report")
        if (remote := from_arguments(given.engine)) is not None:
            publish_with_retry(runner, remote)
    except TunewrightError as error:
        print(json.dumps(error.to_json()), file=sys.stderr)  # noqa: T201
        sys.exit(130 if error.code == "RUN_INTERRUPTED" else error.exit_code)
    except KeyboardInterrupt:  # between two stages
        sys.exit(130)


if __name__ == "__main__":
    main()
