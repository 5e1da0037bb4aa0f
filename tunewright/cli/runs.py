"""`tunewright runs`: list, show, compare, reproduce and remove runs; and the options that all commands share."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

runs_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="List, show, compare, reproduce and remove runs."
)
Root = Annotated[Path, typer.Option("--runs", help="Folder that contains the runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
RunName = Annotated[str, typer.Argument(help="Run folder or name.", metavar="RUN")]
Model = Annotated[str | None, typer.Option("--model", "-m", help="Model folder, Hub id, .gguf file, or smollm2-135m.")]
Source = Annotated[
    str, typer.Argument(help="Data file or folder, YAML config, or run folder.", metavar="DATA|CONFIG|RUN")
]
Settings = Annotated[
    list[str] | None, typer.Argument(help="Settings, e.g. train.steps=40 adapter.rank=8.", metavar="[key=value]...")
]
RUNS = Path("runs")


def require_variable(name: str, option: str) -> None:
    """Raises CONFIG_NOT_FOUND if an option names an environment variable that is not set."""
    from tunewright.core.errors import ConfigError

    if name and not os.environ.get(name):
        what = f"the environment variable {name} is not set."
        raise ConfigError("CONFIG_NOT_FOUND", what, where=option, fix=f"`export {name}=...`")


def config_of(source: str, settings: list[str] | None, model: str | None) -> Any:
    """The config of a command's arguments: a config file, that of a run folder, or one with these rows."""
    from tunewright.core import config

    if Path(source).suffix in (".yaml", ".yml"):
        return config.load(source, settings or [], model=model)
    if (Path(source) / "config.yaml").is_file():
        return config.load(Path(source) / "config.yaml", settings or [], model=model)
    given = [value for name, _, value in (s.partition("=") for s in settings or []) if name == "data.train"]
    if any(not value.lstrip().startswith("[") for value in given):
        from tunewright.core.errors import ConfigError

        message = f"the rows are given twice: as {source} and as data.train."
        fix = "give one of them; for several files, quote a pattern, or set data.train to a list: '[a.jsonl, b.jsonl]'."
        raise ConfigError("CONFIG_CONFLICT", message, where="command line", fix=fix)
    return config.load(None, settings or [], model=model, data__train=source)


@runs_app.command("list")
def runs_list(root: Root = RUNS, as_json: Json = False) -> None:
    """List all runs, oldest first, with stage, verdict and score."""
    from tunewright.core import run_folder

    rows = [_summary(r) for r in run_folder.all_runs(root)]
    if as_json:
        out(rows)
        return
    for r in rows:
        score = f"{r['metric']} {r['tuned']:.3f} ({r['difference']:+.3f} vs. {r['comparator']})" if r["verdict"] else ""
        typer.echo(f"{r['name']:<44} {r['stage']:<9} {r['verdict'] or '':<18} {score}")


@runs_app.command("show")
def runs_show(run: RunName, root: Root = RUNS, as_json: Json = False) -> None:
    """Show one run: stage, verdict, events."""
    from tunewright.core import run_folder

    folder = run_folder.find(root, run)
    facts = {**_summary(folder), "path": str(folder.path), "events": list(run_folder.read_lines(folder.events))}
    if as_json:
        out(facts)
        return
    for key, value in facts.items():
        if key != "events":
            typer.echo(f"{key:<12}{value}")
    for event in facts["events"]:
        typer.echo(f"  {event.pop('time')}  {event.pop('event')}  {' '.join(f'{k}={v}' for k, v in event.items())}")


@runs_app.command("diff")
def runs_diff(first: RunName, second: RunName, root: Root = RUNS, as_json: Json = False) -> None:
    """Show where two runs differ: settings, plan, scores."""
    from tunewright.core import run_folder

    a, b = (_flat(run_folder.find(root, n)) for n in (first, second))
    differences = {k: [a.get(k), b.get(k)] for k in sorted({*a, *b}) if a.get(k) != b.get(k)}
    if as_json:
        out(differences)
        return
    for key, (x, y) in differences.items():
        typer.echo(f"{key:<28}{x!s:<28}{y}")


@runs_app.command("reproduce")
def runs_reproduce(
    run: RunName,
    root: Root = RUNS,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and results.")] = False,
) -> None:
    """Repeat a run from its receipt and report whether the result is bit-identical, or what differs.

    Exits with status 1 if weights, losses or scores differ.
    """
    from tunewright.core import run_folder
    from tunewright.core.console import Console
    from tunewright.stages import reproduce

    result = reproduce.reproduce(run_folder.find(root, run), Console(quiet or as_json))
    if as_json:
        out(result)
    else:
        for name in ("weights", "losses", "scores"):
            typer.echo(f"{name:<12}{'equal' if result[name] else 'DIFFERENT'}")
        for name, (before, now) in result["differs"].items():
            typer.echo(f"{name:<28}{before!s:<28}{now}")
        typer.echo(
            f"{'bit-identical' if result['equal'] else 'not identical'} in {result['compared']}: {result['run']}"
        )
    if not result["equal"]:
        raise typer.Exit(1)


@runs_app.command("rm")
def runs_rm(
    run: RunName,
    root: Root = RUNS,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete a run folder and everything in it."""
    from tunewright.core import run_folder
    from tunewright.runtime import people

    folder = run_folder.find(root, run)
    if not yes:
        typer.confirm(f"delete {folder.path} and everything in it?", abort=True, err=True)
    with people.alone(folder):
        run_folder.remove(folder)


def _summary(run: Any) -> dict[str, Any]:
    from tunewright.core.run_folder import read_json

    v = read_json(run.verdict) if run.verdict.exists() else {}
    return {
        "name": run.name,
        "stage": run.stage,
        "verdict": v.get("verdict"),
        "metric": v.get("metric"),
        "tuned": v.get("tuned"),
        "difference": v.get("difference"),
        "comparator": v.get("comparator", {}).get("name"),
    }


def _flat(run: Any) -> dict[str, object]:
    from tunewright.core import config
    from tunewright.core.run_folder import read_json

    parts: dict[str, object] = {"config": config.load(run.config).model_dump()}
    if run.plan.exists():
        parts["plan"] = {k: v for k, v in read_json(run.plan).items() if k not in ("reasons", "estimate")}
    if run.verdict.exists():
        shown = ("verdict", "metric", "tuned", "difference", "n")
        parts["verdict"] = {k: v for k, v in read_json(run.verdict).items() if k in shown}
    return config.flat(parts)


def out(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=1))
