"""`tunewright verify`: checks whether a program that serves a run's model gives the model's answers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import typer

from tunewright.cli.runs import out, require_variable
from tunewright.core import records, run_folder
from tunewright.core.config import Plan
from tunewright.core.console import Console
from tunewright.core.errors import ConfigError
from tunewright.core.records import EXPORTS, ConsumerCheck, ExportCheck
from tunewright.core.run_folder import Run
from tunewright.data.endpoints.openai_endpoint import Endpoint
from tunewright.export.consumers import diagnosis, llama_cpp, openai_server
from tunewright.export.consumers.openai_server import Server
from tunewright.export.kind import Dtype
from tunewright.stages import runner as runners
from tunewright.stages.runner import Runner

CONTEXT = 1024  # tokens that the longest prompt needs, with its answer


@dataclass(frozen=True)
class Target:
    """What is checked. ``url``: empty for a llama-server that is started; ``key``: the environment variable with the
    API key; ``export``: what it serves, if that is named: a kind of export, or a file; ``dtype``: rounding to it is
    allowed; None for the dtype of the export."""

    url: str
    model: str
    key: str
    export: str
    dtype: Dtype | None


def verify(run: Run, target: Target, as_json: bool, quiet: bool) -> None:
    run_folder.require(run, run.export, "export")
    runners.require_writer(records.read(run.plan, Plan))
    exports = records.read(run.export, EXPORTS)
    served = _named(target.export, exports) if target.export else None
    require_variable(target.key, "--api-key-env")
    runner = runners.Runner(runners.resume(run, Console(quiet or as_json), "tunewright verify"))
    started = None if target.url else llama_cpp.exported(run, exports)
    with _server(runner, target, started) as server:
        check = runner.verify(server, served or started, target.dtype)
    error = diagnosis.error(check)
    if as_json:
        out(records.to_json(check))
        if error is not None:
            typer.secho(f"error{error}", fg="red", err=True)
            raise typer.Exit(error.exit_code)
    elif error is not None:
        raise error
    else:
        typer.echo(sentence(check))


def _named(name: str, exports: Sequence[ExportCheck]) -> ExportCheck:
    """The export of a kind or with a relative path. Raises CONFIG_RANGE."""
    matching = [export for export in exports if name in (export.kind, export.relative_path)]
    if len(matching) != 1:
        what = f"there are several exports {name}." if matching else f"there is no export {name}."
        fix = f"choose one of {', '.join(export.relative_path for export in matching or exports)}."
        raise ConfigError("CONFIG_RANGE", what, where="--export", fix=fix)
    return matching[0]


@contextmanager
def _server(runner: Runner, target: Target, started: ExportCheck | None) -> Iterator[Server]:
    """``started``: the GGUF file for which a llama-server is started, if no URL is given."""
    key = os.environ.get(target.key, "")
    with ExitStack() as stack:
        url = target.url.rstrip("/")
        if started is not None:
            file = runner.context.run.path / started.relative_path
            url = stack.enter_context(llama_cpp.serving(file, runner.work().plan.threads, CONTEXT))
        endpoint = Endpoint(url, target.model, key)
        yield stack.enter_context(openai_server.connect(endpoint, lambda: runner.work().inputs.template.tokenizer))


def sentence(check: ConsumerCheck) -> str:
    """One line about a program that agrees."""
    of_base = f"base model: {check.base_difference:.1e}"
    if check.base_difference <= check.allowed:
        of_base = "the base model gives the same ones, so this does not show whether the trained weights are applied"
    chats = "" if check.encoded == 0 else f"; {check.encoded} chat prompts became the same token ids"
    return (
        f"{check.program} gives the trained model's answers: {check.same_texts} of {check.prompts} texts, largest "
        f"difference of a log probability {check.largest_difference:.1e} in {check.tokens} tokens ({of_base})"
        f"{'; chat prompts: not shown' if check.encoded is None else chats}"
    )
