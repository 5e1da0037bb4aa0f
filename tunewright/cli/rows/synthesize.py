"""`tunewright synthesize`: has another model answer the prompts of rows, as rows to train on."""

from __future__ import annotations

import datetime
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tunewright.cli.runs import Json, Settings, Source, config_of, out, require_variable
from tunewright.core.words import counted

SHOWN = 10  # rows without an answer


def synthesize(
    source: Source,
    url: Annotated[str, typer.Option("--url", help="Base URL of an OpenAI-compatible endpoint.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Name of the model that answers.")],
    target: Annotated[Path, typer.Option("--out", "-o", help="File of rows (JSON Lines) to write.", metavar="FILE")],
    settings: Settings = None,
    api_key_env: Annotated[
        str,
        typer.Option(
            metavar="VAR",
            help="Environment variable with its API key; default for api.openai.com: OPENAI_API_KEY.",
        ),
    ] = "",
    temperature: Annotated[float, typer.Option(min=0, max=2, help="Temperature of the answers.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer; longer ones are left out.")] = 512,
    rows: Annotated[int | None, typer.Option(min=1, metavar="N", help="Ask about the first N rows only.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Concurrent requests.")] = 8,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and results.")] = False,
) -> None:
    """Have a model behind an endpoint answer the prompts of rows, and write its answers as rows to train on.

    Each row says which model wrote it; such rows are never used for testing. The same command continues where it
    stopped.
    """
    from tunewright.core.console import Console
    from tunewright.data.endpoints.openai_endpoint import Endpoint, api_key
    from tunewright.judge import synthesis

    require_variable(api_key_env, "--api-key-env")
    config = config_of(source, settings, None)
    fix = "check --url, --model, and the variable that --api-key-env names."
    endpoint = Endpoint(url.rstrip("/"), model, api_key(url, api_key_env), concurrency, fix, temperature=temperature)
    how = synthesis.Synthesis(endpoint, max_tokens, datetime.date.today().isoformat(), target)
    asked = synthesis.rows_to_answer(config)[:rows]
    console = Console(quiet or as_json)
    with console.bar("synthesize", len(asked), unit="rows") as tick:
        result = synthesis.synthesize(asked, how, config.data.columns, tick)
    if as_json:
        out({"file": str(target), **asdict(result)})
        return
    before = f" ({result.before} from before)" if result.before else ""
    typer.echo(f"{target}: {counted(result.written, 'row')} by {model}{before}; {counted(result.requests, 'request')}")
    for refusal in result.refused[:SHOWN]:
        typer.echo(f"  no answer to {refusal.where}: {refusal.reason}")
    if result.refused:
        typer.echo(f"{counted(len(result.refused), 'row')} without an answer: {how.refusals}")
