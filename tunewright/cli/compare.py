"""`tunewright compare`: people choose between the tuned model's answers and another arm's, without knowing which is
which."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tunewright.cli.runs import RUNS, Json, Root, RunName, out

if TYPE_CHECKING:
    from tunewright.core.records import Preferences
    from tunewright.core.records.people import Side
    from tunewright.judge.people.judge import Judge
    from tunewright.judge.people.pairs import Pair
    from tunewright.runtime.people import Comparing


def compare(
    run: RunName,
    against: Annotated[
        str, typer.Option(metavar="ARM", help="The other arm, or reference; default: the comparator.")
    ] = "",
    rows: Annotated[int, typer.Option(min=1, help="Test rows to compare; 30 to 100 give a usable interval.")] = 50,
    terminal: Annotated[bool, typer.Option("--terminal", help="Ask here instead of on a page.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; default: any free one.")] = 0,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open the page in a browser.")] = False,
    judge: Annotated[
        str, typer.Option(metavar="URL", help="Also ask a model behind an OpenAI-compatible endpoint, about all rows.")
    ] = "",
    judge_model: Annotated[str, typer.Option(metavar="NAME", help="Name of that model.")] = "",
    rubric: Annotated[
        str, typer.Option(metavar="TEXT", help="For the judge: which answer is better, in your words.")
    ] = "",
    api_key_env: Annotated[
        str, typer.Option(metavar="VAR", help="Environment variable with the judge's API key.")
    ] = "OPENAI_API_KEY",
    result: Annotated[bool, typer.Option("--result", help="Only print what was preferred so far.")] = False,
    root: Root = RUNS,
    as_json: Json = False,
) -> None:
    """Choose between the tuned model's answers and others, without knowing which is which; on a page, or here.

    Can be stopped at any time: the same command continues.
    """
    from tunewright.core import records, run_folder
    from tunewright.core.console import Console
    from tunewright.report import build
    from tunewright.runtime import people

    folder = run_folder.find(root, run)
    comparing = people.comparing(folder, against, rows)
    asked = _judge(judge, judge_model, rubric, api_key_env)
    if not result:
        with people.alone(folder):
            if asked is not None:
                comparing.ask(asked, Console(as_json))
            else:
                (_here if terminal else _on_page)(comparing, port, no_open)
    preferences = comparing.result(asked)
    if not result:
        records.write(folder.preferences, preferences)
        if folder.report.exists():
            build.write(folder)
    if as_json:
        out(records.to_json(preferences))
        return
    for line in _lines(preferences, len(comparing.left())):
        typer.echo(line)


def _judge(url: str, model: str, rubric: str, api_key_env: str) -> Judge | None:
    """Raises CONFIG_CONFLICT if only a part of what a judge needs is given."""
    import os

    from tunewright.core.errors import ConfigError
    from tunewright.judge.arms.openai_endpoint import Endpoint
    from tunewright.judge.people.judge import RUBRIC, Judge

    if not url and not model and not rubric:
        return None
    if not url or not model:
        what = "a judge needs an endpoint and the name of its model."
        raise ConfigError("CONFIG_CONFLICT", what, where="--judge", fix="give --judge URL and --judge-model NAME.")
    return Judge(Endpoint(url.rstrip("/"), model, os.environ.get(api_key_env, "")), rubric or RUBRIC)


def _lines(preferences: Preferences, left: int) -> list[str]:
    from tunewright.judge.people import judge
    from tunewright.judge.people.win_rate import sentence

    lines = ["no choices by people yet"]
    if preferences.people is not None:
        more = f"; {left} left, the same command without --judge continues" if left else ""
        lines = [sentence(preferences.people, preferences.against) + more]
    return lines + (
        judge.lines(preferences.judge, preferences.people, preferences.against) if preferences.judge else []
    )


def _on_page(comparing: Comparing, port: int, no_open: bool) -> None:
    import time
    import webbrowser

    from tunewright.runtime.people_page import Page

    if comparing.next() is None:
        return
    page = Page(comparing, port)
    typer.echo(f"open {page.url} (only on this machine; Ctrl-C ends it)", err=True)
    try:
        if not no_open:
            webbrowser.open(page.url)
        page.done.wait()
        time.sleep(1.0)  # the browser fetches nothing else; let it receive the last page
    except KeyboardInterrupt:
        typer.echo("", err=True)
    finally:
        page.close()


def _here(comparing: Comparing, port: int, no_open: bool) -> None:
    sides: dict[str, Side] = {"1": "left", "2": "right", "0": "tie"}
    while (pair := comparing.next()) is not None:
        _print(pair, len(comparing.choices()) + 1, len(comparing.asked))
        entered = _entered()
        if entered == "q":
            return
        if entered == "b":
            comparing.take_back()
        elif entered in sides:
            comparing.choose(pair.row, sides[entered])
        else:
            typer.echo("enter 1, 2, 0 (neither), b (back) or q (stop)", err=True)


def _print(pair: Pair, number: int, count: int) -> None:
    typer.secho(f"\n{number} of {count}", bold=True)
    for role, text in pair.question:
        typer.secho(f"{role}: ", dim=True, nl=False)
        typer.echo(text)
    for name, text in zip(("1", "2"), pair.sides, strict=True):
        typer.secho(f"\nanswer {name}", bold=True)
        typer.echo(text or "(nothing)")


def _entered() -> str:
    try:
        return input("\nbetter [1, 2, 0 neither, b back, q stop]: " if sys.stdin.isatty() else "").strip().lower()
    except (EOFError, KeyboardInterrupt):
        return "q"
