"""`tunewright verify`: asks a program that serves a run's model, and says whether it gives the model's answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tunewright.cli.runs import RUNS, Json, Root, RunName, out

if TYPE_CHECKING:
    from tunewright.core.records import Asked
    from tunewright.export.consumers.openai_server import Server
    from tunewright.export.kind import Dtype
    from tunewright.stages.runner import Runner

CONTEXT = 1024  # tokens that the longest prompt needs, with its answer


def verify(
    run: RunName,
    at: Annotated[
        str, typer.Option(metavar="URL", help="A running server; default: a llama-server of the run's GGUF file.")
    ] = "",
    model: Annotated[str, typer.Option("--model", "-m", help="Name of its model; default: the only one.")] = "",
    api_key_env: Annotated[str, typer.Option(metavar="VAR", help="Environment variable with its API key.")] = "",
    export: Annotated[
        str, typer.Option(metavar="KIND", help="The export that it serves; default: the one whose files it names.")
    ] = "",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(help="Dtype of its weights and cache; differences of the size of its rounding pass."),
    ] = "float32",
    root: Root = RUNS,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and results.")] = False,
) -> None:
    """Ask a server (vLLM, llama-server, SGLang, ...) for answers, and compare them with the run's model.

    Held-out prompts are sent as token ids and as messages. Exits with status 1 if the answers differ, with the cause.
    """
    from tunewright.core import records, run_folder
    from tunewright.core.console import Console
    from tunewright.core.errors import ConfigError
    from tunewright.export import EXPORTS
    from tunewright.export.consumers import diagnosis
    from tunewright.stages import runner as runners

    folder = run_folder.find(root, run)
    run_folder.require(folder, folder.export, "export")
    if export and export not in EXPORTS:
        what = f"there is no export {export}."
        raise ConfigError("CONFIG_RANGE", what, where="--export", fix=f"choose one of {', '.join(EXPORTS)}.")
    runner = runners.Runner(runners.resume(folder, Console(quiet or as_json), "tunewright verify"))
    with _server(runner, at, model, _key(api_key_env)) as (server, stored):
        asked = runner.verify(server, export or None, stored or dtype)
    error = diagnosis.error(asked)
    if as_json:
        out(records.to_json(asked))
    elif error is None:
        typer.echo(_sentence(asked))
    if error is not None and not as_json:
        raise error
    if error is not None:
        typer.secho(f"error{error}", fg="red", err=True)
        raise typer.Exit(error.exit_code)


def _key(variable: str) -> str:
    from tunewright.core.errors import ConfigError

    if variable and not os.environ.get(variable):
        fix = f"export {variable}=..."
        raise ConfigError("CONFIG_NOT_FOUND", f"{variable} is not set.", where="--api-key-env", fix=fix)
    return os.environ.get(variable, "")


@contextmanager
def _server(runner: Runner, url: str, model: str, key: str) -> Iterator[tuple[Server, Dtype | None]]:
    """The server, and the dtype of the weights in the file that it was started with here."""
    from tunewright.export.consumers import llama_cpp, openai_server
    from tunewright.judge.arms.openai_endpoint import Endpoint

    def encode(text: str) -> list[int]:
        ids: list[int] = runner.work().inputs.template.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    if url:
        with openai_server.connect(Endpoint(url.rstrip("/"), model, key), encode) as server:
            yield server, None
        return
    file, dtype = llama_cpp.exported(runner.context.run.path)
    with (
        llama_cpp.serving(file, runner.work().plan.threads, CONTEXT) as local,
        openai_server.connect(Endpoint(local, model), encode) as server,
    ):
        yield server, dtype


def _sentence(asked: Asked) -> str:
    of_base = f"base model: {asked.base_difference:.1e}"
    if asked.base_difference <= asked.allowed:
        of_base = "the base model gives the same ones, so this does not show whether the trained weights are applied"
    return (
        f"{asked.program} gives the trained model's answers: {asked.same_texts} of {asked.prompts} texts, largest "
        f"difference of a log probability {asked.largest_difference:.1e} in {asked.tokens} tokens ({of_base}); "
        f"{asked.encoded} chat prompts became the same token ids"
    )
