"""The command line: one short function per command. Results go to stdout, everything else to stderr.

Exit status: 0 success, 1 failure, 2 a mistake in the input, 3 gate failed, 4 waits for trainings whose command lines
were printed, 130 interrupted (completed work is saved).
"""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tunewright.cli.chat import chat
from tunewright.cli.check import check
from tunewright.cli.compare import compare
from tunewright.cli.fan_out import AtOnce, On, Yes, confirm_long, require_grid, swept_settings, where
from tunewright.cli.fix import fix
from tunewright.cli.preview import preview
from tunewright.cli.push import push
from tunewright.cli.rows.synthesize import synthesize
from tunewright.cli.runs import RUNS, Json, Model, Root, RunName, Settings, Source, config_of, out, runs_app
from tunewright.cli.serve import serve
from tunewright.core.config import EMBEDDING, RANKERS, load
from tunewright.core.errors import RunWaits, TunewrightError
from tunewright.fan.jobs import HERE, Where

if TYPE_CHECKING:
    from tunewright.core.run_folder import Run
    from tunewright.stages.runner import Runner

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Fine-tune a language model on your rows, and prove on held-out rows what it did.",
)
app.add_typer(runs_app, name="runs")


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"tunewright {metadata.version('tunewright')}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


Name = Annotated[str | None, typer.Option("--name", "-n", help="Name of the run; default: data file name and time.")]
Separate = Annotated[bool, typer.Option("--separate", help="Train in a separate process.")]
Gate = Annotated[bool, typer.Option("--gate", help="Exit with status 3 unless the verdict is BETTER.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and results.")]


@app.command()
def run(
    source: Source,
    settings: Settings = None,
    model: Model = None,
    name: Name = None,
    root: Root = RUNS,
    as_json: Json = False,
    quiet: Quiet = False,
    gate: Gate = False,
    separate: Separate = False,
    yes: Yes = False,
    on: On = "here",
    at_once: AtOnce = None,
) -> None:
    """Run every stage: check, plan, train, prove, export, report.

    Given a run folder, continue that run where it stopped.
    """
    place = where(on, at_once, separate, yes)
    runner = _advance(source, settings, model, name, root, quiet or as_json, "report", place)
    _verdict(runner, as_json)
    _gate(runner, gate)


@app.command()
def sweep(
    source: Source,
    settings: Settings = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds for the default and for the best other recipe.")] = None,
    halve: Annotated[
        bool | None, typer.Option("--halve/--full", help="Drop half of the recipes at a quarter and half of the steps.")
    ] = None,
    model: Model = None,
    name: Name = None,
    root: Root = RUNS,
    as_json: Json = False,
    quiet: Quiet = False,
    gate: Gate = False,
    yes: Yes = False,
    on: On = "here",
    at_once: AtOnce = None,
) -> None:
    """Compare recipes on the dev rows, then run every stage with the best, if it beats the default.

    Values to try are separated by commas: train.lr=1e-4,3e-4 adapter.rank=8,32.
    """
    words = swept_settings(settings or [], seeds, halve)
    if run := _existing(source, root):
        require_grid(load(run.config))
    else:
        require_grid(config_of(source, words, model), config_of(source, None, model))
    place = where(on, at_once, agreed=yes)
    runner = _advance(source, words, model, name, root, quiet or as_json, "report", place)
    _verdict(runner, as_json)
    _gate(runner, gate)


@app.command()
def demo(
    settings: Settings = None, name: Name = None, root: Root = RUNS, as_json: Json = False, quiet: Quiet = False
) -> None:
    """Run every stage on real rows with the model smollm2-135m.

    Extracts JSON from US addresses; takes 8 to 20 minutes on two cores.
    """
    from tunewright.cli.demo import SETTINGS, rows_file

    chosen = [*SETTINGS, *(settings or [])]
    _verdict(_advance(str(rows_file()), chosen, None, name, root, quiet or as_json, "report"), as_json)


app.command()(check)
app.command()(fix)
app.command()(synthesize)
app.command()(preview)


def _stage(name: str, description: str) -> None:
    def stage(
        source: Source,
        settings: Settings = None,
        model: Model = None,
        name_: Name = None,
        root: Root = RUNS,
        as_json: Json = False,
        quiet: Quiet = False,
    ) -> None:
        _print_record(name, _advance(source, settings, model, name_, root, quiet or as_json, name), as_json)

    app.command(name, help=description)(stage)


def _print_record(name: str, runner: Runner, as_json: bool) -> None:
    """Prints the record of the last stage that the command ran."""
    from tunewright.core.run_folder import read_json
    from tunewright.core.stage_names import BY_NAME

    run = runner.context.run
    file = run.path / BY_NAME[name].file
    if as_json:
        out(read_json(file) if file.suffix == ".json" else {"report": str(file)})
    elif name == "plan":
        plan = read_json(file)
        for key, value in plan.items():
            if key not in ("reasons", "estimate", "adapter"):
                typer.echo(f"{key:<24}{value!s:<12} {plan['reasons'].get(key, '')}")
        typer.echo(f"next: tunewright run {run.path}")
    else:
        typer.echo(str(file if name == "report" else run.path))
        if name == "export" and (run.path / "serve" / "llama-server.sh").exists():
            typer.echo(f"next: sh {run.path}/serve/llama-server.sh")
            typer.echo(f"then: tunewright verify {run.path} --at http://localhost:8080")


_stage("plan", "Run up to the plan: every number that training uses, with its reason.")


@app.command()
def train(
    source: Source,
    settings: Settings = None,
    model: Model = None,
    name: Name = None,
    root: Root = RUNS,
    profile: Annotated[
        bool, typer.Option("--profile", help="First profile a few steps and print where their time goes.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    separate: Separate = False,
    yes: Yes = False,
) -> None:
    """Run up to the end of training. Under torchrun: one of several processes that train a planned run together."""
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        _together(source, root, processes)
        return
    place = Where(separate=separate, agreed=yes)
    runner = _advance(source, settings, model, name, root, quiet or as_json, "plan" if profile else "train", place)
    if profile:
        from tunewright.train.profile import lines

        for line in lines(runner.profile()):
            if not as_json:
                typer.echo(line)
        runner.advance("train")
    _print_record("train", runner, as_json)


@app.command()
def prove(
    source: Source,
    settings: Settings = None,
    model: Model = None,
    name: Name = None,
    root: Root = RUNS,
    as_json: Json = False,
    quiet: Quiet = False,
    gate: Gate = False,
    yes: Yes = False,
) -> None:
    """Run up to the verdict: evaluate all arms on the held-out rows."""
    runner = _advance(source, settings, model, name, root, quiet or as_json, "prove", Where(agreed=yes))
    _print_record("prove", runner, as_json)
    _gate(runner, gate)


@app.command("learning-curve")
def learning_curve(
    run: RunName,
    full: Annotated[
        bool, typer.Option("--full", help="Train on four sizes with three seeds each, and extrapolate.")
    ] = False,
    root: Root = RUNS,
    as_json: Json = False,
    quiet: Quiet = False,
    on: On = "here",
    at_once: AtOnce = None,
) -> None:
    """Measure whether more data would help: train on half of the rows and compare."""
    from tunewright.core import run_folder

    folder = run_folder.find(root, run)
    place = where(on, at_once)
    runner = _advance(str(folder.path), None, None, None, root, quiet or as_json, "prove", place)
    runner.learning_curve(full)
    if as_json:
        out(run_folder.read_json(folder.learning_curve))
    else:
        typer.echo(str(folder.learning_curve))


@app.command()
def export(
    source: Source,
    settings: Settings = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="KINDS",
            help="Also write these: gguf, gguf:TYPE,TYPE, lora-gguf, ollama, vllm, sglang, llama-server, mlx, onnx.",
        ),
    ] = None,
    model: Model = None,
    name: Name = None,
    root: Root = RUNS,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run up to the exports: write, reload and verify them."""
    given, existing = settings or [], _existing(source, root)
    if to is not None:
        from tunewright.cli import export_kinds
        from tunewright.core import records

        before = config_of(str(existing.path) if existing else source, given, None)
        checks = (records.existing(existing.export, records.EXPORTS) if existing else None) or ()
        written = [check.dtype for check in checks if check.kind == "gguf"]
        given = [*given, *export_kinds.settings(to, before.export.to, written)]
    until = "report" if existing and given and existing.report.exists() else "export"
    _print_record("export", _advance(source, given, model, name, root, quiet or as_json, until), as_json)


_stage("report", "Run up to the report.")

app.command()(push)


@app.command()
def verify(
    run: RunName,
    at: Annotated[
        str, typer.Option(metavar="URL", help="A running server; default: a llama-server of the run's GGUF file.")
    ] = "",
    model: Annotated[str, typer.Option("--model", "-m", help="Name of its model; default: the only one.")] = "",
    api_key_env: Annotated[str, typer.Option(metavar="VAR", help="Environment variable with its API key.")] = "",
    export: Annotated[
        str,
        typer.Option(
            metavar="KIND|FILE",
            help="The export that it serves, or its file in the run folder; default: the one whose files it names.",
        ),
    ] = "",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(
            help="Dtype of its weights and cache, whose rounding it may show; default: that of the export's file, or "
            "float32.",
        ),
    ] = None,
    root: Root = RUNS,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare the answers of a server (vLLM, llama-server, SGLang, ...) with those of the run's model.

    Held-out prompts are sent as token ids and as messages. Exits with status 1 if the answers differ, with the cause.
    """
    from tunewright.cli import verify as checking
    from tunewright.core import run_folder

    target = checking.Target(at, model, api_key_env, export, dtype)
    checking.verify(run_folder.find(root, run), target, as_json, quiet)


app.command()(compare)
app.command()(serve)
app.command()(chat)


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Also validate this config.")] = None,
    selftest: Annotated[
        str | None,
        typer.Option(
            "--selftest",
            metavar="DATA|CONFIG",
            help="Also run the self-test that a run on this data would start with.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the machine: processor, memory, packages, cache."""
    from tunewright.cli import doctor

    facts = doctor.summary(config)
    if selftest is not None:
        facts |= doctor.dry_run(config_of(selftest, None, None))
    if as_json:
        out(facts)
    else:
        for key, value in facts.items():
            typer.echo(f"{key:<22}{value}")


CHANGEABLE = ("export.", "data.train=", "data.dev=", "data.test=")  # settings of an existing run: its files may move


def _together(source: str, root: Path, processes: int) -> None:
    """Trains a planned run, as one of so many processes; the first one writes."""
    from tunewright.core.errors import ConfigError
    from tunewright.stages import worker

    run = _existing(source, root)
    if run is None:
        raise ConfigError(
            "CONFIG_CONFLICT",
            f"{processes} processes were started, and {source} is not a run with a plan.",
            where="WORLD_SIZE",
            fix=f"`tunewright plan {source} --name NAME`, then torchrun with `-m tunewright train runs/NAME`.",
        )
    worker.work(run, under_lock=False)


def _advance(
    source: str,
    settings: list[str] | None,
    model: str | None,
    name: str | None,
    root: Path,
    quiet: bool,
    until: str,
    place: Where = HERE,
) -> Runner:
    """Runs all stages up to ``until``, of a new or an existing run; ``place``: where it is trained."""
    from tunewright.core.console import Console
    from tunewright.core.errors import ConfigError

    console, existing = Console(quiet), _existing(source, root)
    fixed = [s for s in settings or [] if not s.startswith(CHANGEABLE)]
    if existing is not None and (fixed or model or name):
        raise ConfigError(
            "CONFIG_CONFLICT",
            "of an existing run, only the export settings and the names of its data files can be changed.",
            where=source,
            fix="omit the other settings, or start a new run from its config.yaml.",
        )
    from tunewright.data import dataset
    from tunewright.data.remedies.prepared import pinned

    if existing is None:
        config = pinned(config_of(source, settings, model))
        data = dataset.load(config)  # reports mistakes in the data before torch is loaded and a run folder is created
    from tunewright.stages import runner as runners

    if existing is None:
        context = runners.start(config, name, root, console, _command(), data)
    else:
        context = runners.resume(existing, console, _command(), settings or [])
    if until == "report":
        context.run.report.unlink(missing_ok=True)
    runner = runners.Runner(dataclasses.replace(context, where=place))
    if until not in ("check", "sweep", "plan") and not context.run.metrics.exists():
        runner.advance("plan")
        confirm_long(context.run)
    runner.advance(until)
    return runner


def _existing(source: str, root: Path) -> Run | None:
    """The run that the argument names, by its folder or its name."""
    from tunewright.core.run_folder import Run, find

    if (Path(source) / "config.yaml").is_file():
        return Run(Path(source))
    if not Path(source).exists() and (root / source / "config.yaml").is_file():
        return find(root, source)
    return None


def _command() -> str:
    import shlex

    return shlex.join(["tunewright", *sys.argv[1:]])


def _verdict(runner: Runner, as_json: bool) -> None:
    from tunewright.core import records, run_folder
    from tunewright.judge.verdict import sentence

    run = runner.context.run
    if as_json:
        out({**run_folder.read_json(run.verdict), "run": str(run.path), "report": str(run.report)})
        return
    typer.echo(sentence(records.read(run.verdict, records.Verdict)))
    typer.echo(f"report: {run.report}")
    if runner.context.config.train.method not in (*RANKERS, *EMBEDDING):  # which do not answer
        typer.echo(f"try it: tunewright chat {run.path}")


def _gate(runner: Runner, gate: bool) -> None:
    from tunewright.core import records

    if gate and not records.read(runner.context.run.verdict, records.Verdict).is_better:
        raise typer.Exit(3)


def main() -> None:
    """Entry point: a TunewrightError becomes lines on stderr (and JSON on stdout with --json) and an exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # schedulers send SIGTERM; treat it like Ctrl-C
    os.umask(0o077)  # run folders contain rows, prompts and answers: keep them private
    try:
        try:
            app(prog_name="tunewright")
        finally:
            sys.stdout.flush()
    except RunWaits as waits:
        typer.echo(waits.problems[0].message, err=True)
        sys.exit(waits.exit_code)
    except TunewrightError as error:
        if "--json" in sys.argv:
            out(error.to_json())
        for line in str(error).splitlines():
            typer.secho(f"error{line}" if line.startswith("[") else line, fg="red", err=True)
        sys.exit(130 if error.code == "RUN_INTERRUPTED" else error.exit_code)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what could not be written is not tried again
        typer.secho("error[RUN_DISK] the output: no space is left on the device. Fix: free some.", fg="red", err=True)
        sys.exit(1)
