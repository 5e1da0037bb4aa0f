"""`tunewright compare`: people choose between the tuned model's answers and another arm's, without knowing which is
which."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tunewright.cli.runs import RUNS, Json, Root, RunName, out

if TYPE_CHECKING:
    from tunewright.core.records.people import Side
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
    result: Annotated[bool, typer.Option("--result", help="Only print what was preferred so far.")] = False,
    root: Root = RUNS,
    as_json: Json = False,
) -> None:
    """Choose between the tuned model's answers and others, without knowing which is which; on a page, or here.

    Can be stopped at any time: the same command continues.
    """
    from tunewright.core import records, run_folder
    from tunewright.judge.people.win_rate import sentence
    from tunewright.report import build
    from tunewright.runtime import people

    folder = run_folder.find(root, run)
    comparing = people.comparing(folder, against, rows)
    if not result:
        with people.alone(folder):
            (_here if terminal else _on_page)(comparing, port, no_open)
        if folder.report.exists():
            build.write(folder)
    found = comparing.result()
    if as_json:
        out(records.to_json(found))
    elif found.people is None:
        typer.echo("nothing was chosen" if comparing.asked else "all answers are the same: nothing to choose")
    else:
        left = len(comparing.asked) - len(comparing.choices())
        more = f"; {left} left, the same command continues" if left else ""
        typer.echo(f"{sentence(found.people, found.against)}{more}")


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
