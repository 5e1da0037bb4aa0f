"""`tunewright compare`: people choose between the tuned model's answers and another arm's, without knowing which is
which."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tunewright.cli.runs import RUNS, Json, Root, RunName, out
from tunewright.core.words import on_one_line

if TYPE_CHECKING:
    from tunewright.core.records import Preferred
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
    rubric: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help='What "better" means, in your words; "" for the default; else as before.'),
    ] = None,
    judge: Annotated[
        str,
        typer.Option(
            metavar="URL", help="Instead of people, ask a model behind an OpenAI-compatible endpoint, about all rows."
        ),
    ] = "",
    judge_model: Annotated[str, typer.Option(metavar="NAME", help="Name of that model.")] = "",
    judge_max_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum tokens of a reply; a model that thinks first needs more.")
    ] = 512,
    api_key_env: Annotated[
        str,
        typer.Option(
            metavar="VAR",
            help="Environment variable with its API key; default for api.openai.com: OPENAI_API_KEY.",
        ),
    ] = "",
    result: Annotated[bool, typer.Option("--result", help="Only print what was preferred so far.")] = False,
    root: Root = RUNS,
    as_json: Json = False,
) -> None:
    """Choose between the tuned model's answers and others, without knowing which is which; on a page, or in the
    terminal.

    Can be stopped at any time: the same command continues.
    """
    from tunewright.core import records, run_folder
    from tunewright.core.console import Console
    from tunewright.report import build
    from tunewright.runtime import people

    folder = run_folder.find(root, run)
    comparing = people.comparing(folder, against, rows, rubric)
    asked = _judge(judge, judge_model, comparing.rubric, api_key_env, judge_max_tokens)
    if not result:
        with people.alone(folder):
            if asked is not None:
                comparing.ask(asked, Console(as_json))
            elif terminal:
                _here(comparing)
            else:
                _on_page(comparing, port, no_open)
    preferred = comparing.result(asked)
    if as_json:
        out(records.to_json(preferred))
    else:
        for line in _lines(preferred, len(comparing.left()), asked is not None):
            typer.echo(line)
        if asked is not None and preferred.judge is None:
            pairs = 2 * sum(not pair.same for pair in comparing.pairs)
            answered = pairs - len(comparing.unjudged(asked))
            typer.echo(f"with this rubric, {judge_model} has answered {answered} of {pairs} questions")
    if not result:
        comparing.save(preferred)
        if folder.report.exists():
            build.write(folder)


def _judge(url: str, model: str, rubric: str, api_key_env: str, max_tokens: int) -> Judge | None:
    """Raises CONFIG_CONFLICT if only a part of what a judge needs is given."""
    from tunewright.core.errors import ConfigError
    from tunewright.data.endpoints.openai_endpoint import Endpoint, api_key
    from tunewright.judge.people.judge import RUBRIC, Judge

    if not url and not model:
        return None
    if not url or not model:
        what = "a judge needs an endpoint and the name of its model."
        raise ConfigError("CONFIG_CONFLICT", what, where="--judge", fix="give --judge URL and --judge-model NAME.")
    fix = "check --judge, --judge-model, and the variable that --api-key-env names."
    return Judge(Endpoint(url.rstrip("/"), model, api_key(url, api_key_env), fix=fix), rubric or RUBRIC, max_tokens)


def _lines(preferred: Preferred, left: int, judging: bool) -> list[str]:
    from tunewright.judge.people import judge
    from tunewright.judge.people.win_rate import sentence

    lines = ["no choices by people yet"]
    if preferred.people is not None:
        without = " without --judge" if judging else ""
        more = f"; {left} left: the same command{without} continues" if left else ""
        lines = [sentence(preferred.people, preferred.against) + more]
    return lines + (judge.lines(preferred.judge, preferred.people, preferred.against) if preferred.judge else [])


def _question(rubric: str) -> str:
    from tunewright.judge.people.judge import RUBRIC

    return f"The better answer is {rubric or RUBRIC}." if not rubric.endswith((".", "?", "!")) else rubric


def _on_page(comparing: Comparing, port: int, no_open: bool) -> None:
    import time
    import webbrowser

    from tunewright.core import run_folder
    from tunewright.runtime.people_page import Page

    if not comparing.asked:
        return
    page = Page(comparing, port, _question(comparing.rubric))
    typer.echo(f"open {page.url} (only on this machine; Finish on the last page, or Ctrl-C here, ends it)", err=True)
    # A browser's arguments can be read by other users of the machine, this file cannot.
    opened = comparing.run.path / ".compare.html"
    try:
        if not no_open:
            run_folder.write_atomic(opened, f'<meta http-equiv="refresh" content="0; url={page.url}">')
            webbrowser.open(opened.resolve().as_uri())
        page.done.wait()
        time.sleep(0.5)  # let the browser receive the last page
    except KeyboardInterrupt:
        typer.echo("", err=True)
    finally:
        opened.unlink(missing_ok=True)
        page.close()


def _here(comparing: Comparing) -> None:
    sides: dict[str, Side] = {"1": "left", "2": "right", "0": "tie"}
    typer.echo(_question(comparing.rubric))
    while comparing.asked:
        pair = comparing.next()
        if pair is not None:
            _print(pair, len(comparing.choices()) + 1, len(comparing.asked))
        entered = _entered("better [1, 2, 0 equal, b back, q stop]" if pair else "all are compared [b back, q stop]")
        if entered == "q":
            return
        if entered == "b":
            comparing.take_back()
        elif pair is not None and entered in sides:
            comparing.choose(pair.row, sides[entered])
        else:
            typer.echo("enter 1, 2, 0 (equal, or you cannot tell), b (back: choose again) or q (stop)", err=True)


def _print(pair: Pair, number: int, count: int) -> None:
    typer.secho(f"\n{number} of {count}", bold=True)
    for role, text in pair.question:
        typer.secho(f"{role}: ", dim=True, nl=False)
        typer.echo(_plain(text))
    for name, text, cut in zip(("1", "2"), pair.sides, pair.cut, strict=True):
        typer.secho(f"\nanswer {name}", bold=True)
        typer.echo((_plain(text) or "(nothing)") + (" (cut off at the token limit)" if cut else ""))


def _plain(text: str) -> str:
    """Without what a terminal would obey."""
    return "\n".join("\t".join(map(on_one_line, line.split("\t"))) for line in text.split("\n"))


def _entered(question: str) -> str:
    try:
        return input(f"\n{question}: " if sys.stdin.isatty() else "").strip().lower()
    except (EOFError, KeyboardInterrupt):
        return "q"
