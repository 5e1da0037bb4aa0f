"""`tunewright chat`: talk with the tuned model of a run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tunewright.cli.runs import RUNS, Root, RunName

if TYPE_CHECKING:
    from tunewright.data.messages import Message


def chat(
    run: RunName,
    message: Annotated[
        str | None, typer.Argument(help="A single message; default: an interactive conversation.")
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="System message; default: the instruction of the training rows.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=8192, help="Maximum answer length in tokens.")] = 256,
    root: Root = RUNS,
) -> None:
    """Chat with the tuned model of a run, with the tools of its training rows; you enter the results of its calls."""
    from tunewright.core import run_folder
    from tunewright.runtime import chat as runtime

    model = runtime.load_run(run_folder.find(root, run))
    if message is not None:
        typer.echo(runtime.answer(model, message, system=system, max_new_tokens=max_new_tokens))
        return
    typer.secho(
        "enter an empty line or Ctrl-D to end the conversation"
        + (f"; system: {model.instruction}" if model.instruction and system is None else "")
        + (f"; tools: {', '.join(t['function']['name'] for t in model.tools)}" if model.tools else ""),
        dim=True,
        err=True,
    )
    turns: list[Message] = []
    while asked := _asked(turns):
        turns += asked
        reply = runtime.reply(model, turns, system=system, max_new_tokens=max_new_tokens)
        if reply.reasoning:
            typer.secho(reply.reasoning, dim=True, err=True)
        typer.echo(reply.text)
        turns.append(reply)


def _asked(turns: Sequence[Message]) -> list[Message]:
    """What the user enters next: the result of every call of the last reply, or a question. Empty: the end."""
    from tunewright.data.messages import Message

    calls = turns[-1].tool_calls if turns else ()
    entered = [_line(f"result of {call.name}> ") for call in calls] or [_line("> ")]
    if not all(entered):
        return []
    if not calls:
        return [Message("user", entered[0])]
    return [Message("tool", text, name=call.name, call_id=call.id) for text, call in zip(entered, calls, strict=True)]


def _line(prompt: str) -> str:
    """A line of the user; empty at the end of the input."""
    try:
        return input(prompt if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""
