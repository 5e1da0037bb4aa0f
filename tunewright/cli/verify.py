"""`tunewright verify`: asks a program that serves a run's model, and says whether it gives the model's answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import typer

from tunewright.cli.runs import out
from tunewright.core import records, run_folder
from tunewright.core.console import Console
from tunewright.core.errors import ConfigError
from tunewright.core.records import Asked
from tunewright.core.run_folder import Run
from tunewright.export import EXPORTS
from tunewright.export.consumers import diagnosis, llama_cpp, openai_server
from tunewright.export.consumers.openai_server import Server
from tunewright.export.kind import Dtype
from tunewright.judge.arms.openai_endpoint import Endpoint
from tunewright.stages import runner as runners
from tunewright.stages.runner import Runner

CONTEXT = 1024  # tokens that the longest prompt needs, with its answer


@dataclass(frozen=True)
class Target:
    """What is asked. ``url``: empty for a llama-server that is started; ``key``: the environment variable with the API
    key; ``kind``: the export that it serves; ``dtype``: rounding to it is allowed."""

    url: str
    model: str
    key: str
    kind: str
    dtype: Dtype


def verify(run: Run, target: Target, as_json: bool, quiet: bool) -> None:
    run_folder.require(run, run.export, "export")
    if target.kind and target.kind not in EXPORTS:
        fix = f"choose one of {', '.join(EXPORTS)}."
        raise ConfigError("CONFIG_RANGE", f"there is no export {target.kind}.", where="--export", fix=fix)
    if target.key and not os.environ.get(target.key):
        what = f"the environment variable {target.key} is not set."
        raise ConfigError("CONFIG_NOT_FOUND", what, where="--api-key-env", fix=f"`export {target.key}=...`")
    runner = runners.Runner(runners.resume(run, Console(quiet or as_json), "tunewright verify"))
    with _server(runner, target) as (server, dtype):
        asked = runner.verify(server, target.kind or None, dtype)
    error = diagnosis.error(asked)
    if as_json:
        out(records.to_json(asked))
        if error is not None:
            typer.secho(f"error{error}", fg="red", err=True)
            raise typer.Exit(error.exit_code)
    elif error is not None:
        raise error
    else:
        typer.echo(sentence(asked))


@contextmanager
def _server(runner: Runner, target: Target) -> Iterator[tuple[Server, Dtype]]:
    """The server, and the dtype to which it may round."""

    def encode(text: str) -> list[int]:
        ids: list[int] = runner.work().inputs.template.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    key = os.environ.get(target.key, "")
    if target.url:
        with openai_server.connect(Endpoint(target.url.rstrip("/"), target.model, key), encode) as server:
            yield server, target.dtype
        return
    file, dtype = llama_cpp.exported(runner.context.run.path)
    with (
        llama_cpp.serving(file, runner.work().plan.threads, CONTEXT) as url,
        openai_server.connect(Endpoint(url, target.model), encode) as server,
    ):
        yield server, dtype


def sentence(asked: Asked) -> str:
    """One line about a program that agrees."""
    of_base = f"base model: {asked.base_difference:.1e}"
    if asked.base_difference <= asked.allowed:
        of_base = "the base model gives the same ones, so this does not show whether the trained weights are applied"
    return (
        f"{asked.program} gives the trained model's answers: {asked.same_texts} of {asked.prompts} texts, largest "
        f"difference of a log probability {asked.largest_difference:.1e} in {asked.tokens} tokens ({of_base}); "
        f"{asked.encoded} chat prompts became the same token ids"
    )
