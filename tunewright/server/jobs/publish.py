"""Publishes the adapter of a finished run on the engine of another program: ``python -m tunewright.server.jobs.publish
RUN --engine ...``.

It is registered under a preliminary name and verified there against the trained model's own log-probabilities; only
then it gets the name under which it is asked. Errors go to stderr as one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tunewright.core import records, run_folder
from tunewright.core.console import Console
from tunewright.core.errors import RunError, TunewrightError
from tunewright.core.records import EXPORTS, Training
from tunewright.core.run_folder import Run
from tunewright.export.consumers import diagnosis, openai_server
from tunewright.server.engine import vllm
from tunewright.server.engine.vllm import Remote, name_of, of_arguments
from tunewright.stages.runner import Runner, resume
from tunewright.stages.worker import end_with


def publish(runner: Runner, remote: Remote) -> None:
    """Raises CONSUMER_DIFFERS if the engine does not give the trained model's answers, REMOTE_FAILED if it cannot be
    asked, RUN_INCOMPLETE without an exported adapter."""
    run = runner.context.run
    run_folder.require(run, run.export, "export")
    exported = next((check for check in records.read(run.export, EXPORTS) if check.kind == "adapter"), None)
    if exported is None:
        what, fix = "the run has no exported adapter.", f"`tunewright export {run.path} --to adapter`."
        raise RunError("RUN_INCOMPLETE", what, where=str(run.path), fix=fix)
    folder = run.path / exported.relative_path
    name = name_of(records.read(run.training, Training).weights_sha256)
    preliminary = f"{name}-unverified"
    vllm.unregister(remote, preliminary)  # of a process that was killed
    vllm.register(remote, preliminary, folder)
    try:
        endpoint = remote.endpoint(preliminary)
        with openai_server.connect(endpoint, lambda: runner.work().inputs.template.tokenizer) as server:
            error = diagnosis.error(runner.verify(server, exported, remote.dtype))
        if error is not None:
            raise error
        vllm.register(remote, name, folder)
    finally:
        vllm.unregister(remote, preliminary)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tunewright.server.jobs.publish", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--parent", type=int, required=True, help="the server; end when it ends")
    given = parser.parse_args()
    end_with(given.parent)
    remote = of_arguments(given.engine)
    assert remote is not None
    try:
        publish(Runner(resume(Run(given.run), Console(quiet=True), "tunewright serve")), remote)
    except TunewrightError as error:
        print(json.dumps(error.to_json()), file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
