"""Publishes the adapter of a finished run on vLLM: ``python -m tunewright.server.jobs.publish RUN --engine ...``.

It is loaded under a preliminary name and its answers are compared with the trained model's own log-probabilities; only
then is it given the name that requests use. A job's adapter is checked as `tunewright verify` does, with held-out
prompts; one that is published again, because vLLM was restarted, with fixed ones, since the rows may be gone. Errors go
to stderr as one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tunewright.core import records, run_folder
from tunewright.core.chosen import chosen_scale
from tunewright.core.errors import RunError, TunewrightError
from tunewright.core.records import EXPORTS, ExportCheck, Training
from tunewright.core.run_folder import Run
from tunewright.export.consumers import diagnosis, openai_server
from tunewright.export.consumers.openai_server import Server
from tunewright.model.decoding.generate import stop_ids
from tunewright.runtime import chat, verification
from tunewright.runtime.verification import Reference
from tunewright.server.engine import base, vllm
from tunewright.server.engine.vllm import Remote, from_arguments, name_of
from tunewright.stages.runner import Runner
from tunewright.stages.worker import end_with
from tunewright.system import crowding
from tunewright.tokens.template import Template


def publish(runner: Runner, remote: Remote) -> None:
    """The adapter of a job. Raises CONSUMER_DIFFERS if vLLM does not give the trained model's answers, REMOTE_FAILED if
    it cannot be asked, RUN_INCOMPLETE without an exported adapter."""
    exported = _exported(runner.context.run)

    def check(server: Server) -> None:
        if (error := diagnosis.error(runner.verify(server, exported, remote.dtype))) is not None:
            raise error

    _publish(runner.context.run, exported, remote, runner.work().inputs.template, check)


def publish_again(run: Run, remote: Remote) -> None:
    """Without the rows of the run. Raises as `publish`."""
    exported, tuned = _exported(run), chat.load_run(run)
    stop, vocabulary = stop_ids(tuned.model, tuned.template.eos), len(tuned.model.head_VD)
    reference = Reference(run.name, tuned.model.module.float(), stop, vocabulary)

    def check(server: Server) -> None:
        with crowding.giving_way():
            verification.require(server, reference, base.questions(tuned.template), remote.dtype)

    _publish(run, exported, remote, tuned.template, check)


def _exported(run: Run) -> ExportCheck:
    run_folder.require(run, run.export, "export")
    exported = next((check for check in records.read(run.export, EXPORTS) if check.kind == "adapter"), None)
    if exported is None:
        what, fix = "the run has no exported adapter.", f"`tunewright export {run.path} --to adapter`."
        raise RunError("RUN_INCOMPLETE", what, where=str(run.path), fix=fix)
    return exported


def _publish(
    run: Run, exported: ExportCheck, remote: Remote, template: Template, check: Callable[[Server], None]
) -> None:
    folder = run.path / exported.relative_path
    name = name_of(records.read(run.training, Training).weights_sha256, chosen_scale(run))
    preliminary = f"{name}-{secrets.token_hex(4)}"
    vllm.register(remote, preliminary, folder)
    try:
        with openai_server.connect(remote.endpoint(preliminary), lambda: template.tokenizer) as server:
            check(replace(server, models=()))  # the others may be another tenant's
        vllm.register(remote, name, folder)
    finally:
        with suppress(TunewrightError):  # the first error counts
            vllm.unregister(remote, preliminary)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tunewright.server.jobs.publish", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--parent", type=int, required=True, help="the server; end when it ends")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    end_with(given.parent)
    remote = from_arguments(given.engine)
    assert remote is not None
    try:
        publish_again(Run(given.run), remote)
    except TunewrightError as error:
        print(json.dumps(error.to_json()), file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
