"""Long runs and many trainings on the command line: whether they begin, where they run, the grid of a sweep."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Sequence
from typing import Annotated

import typer

from tunewright.core import records
from tunewright.core.config import Config, Plan
from tunewright.core.config.sweeps import SWEPT
from tunewright.core.errors import ConfigError, RunError
from tunewright.core.run_folder import ATTEMPT, Run
from tunewright.core.words import LONG_HOURS, duration
from tunewright.fan.jobs import Place, Where

On = Annotated[
    Place,
    typer.Option(
        help="Where branches are trained. here: in this process; local: in separate processes on this machine; ray: on "
        "a Ray cluster; print: only print the commands."
    ),
]
AtOnce = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=4096,
        metavar="N",
        help="Branches at a time. With --on here, adapters on one base in joint passes (default: one); with --on local "
        "or ray, processes (default: one for each GPU, or one).",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help=f"Begin even if it will take more than {LONG_HOURS} hours.")]


def where(on: Place, at_once: int | None, separate: bool = False, agreed: bool = False) -> Where:
    attempt = os.environ.get(ATTEMPT) or ("" if on == "print" else uuid.uuid4().hex)
    return Where(on, at_once, attempt, separate, agreed)


def confirm_long(run: Run) -> None:
    """Asks whether a run may take hours, unless somebody has agreed before. Raises RUN_LONG if nobody does."""
    estimate = records.read(run.plan, Plan).estimate
    total = sum(estimate.stages.values()) if estimate else 0.0
    agreed = any(e.event == records.AGREED for e in records.read_lines(run.events, records.Event))
    if agreed or total < 3600 * LONG_HOURS or estimate is None:
        return
    longest = sorted(estimate.stages.items(), key=lambda stage: -stage[1])[:2]
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in longest)
    if sys.stdin.isatty() and typer.confirm(f"This will take about {duration(total)} ({parts}). Begin?", err=True):
        run.event(records.AGREED)
        return
    raise RunError(
        "RUN_LONG",
        f"the run would take about {duration(total)} ({parts}).",
        where=str(run.path),
        fix=f"`tunewright run {run.path} --yes` begins it; a smaller model, fewer train.steps or "
        "a lower prove.max_test_rows take less.",
    )


def swept_settings(given: Sequence[str], seeds: int | None, halve: bool | None) -> list[str]:
    """The settings of the run: those of a recipe with several values, separated by commas, become its grid. A setting
    with one value beside it is the default recipe's."""
    several, words = dict[str, list[str]](), list[str]()
    for word in given:
        key, _, text = word.partition("=")
        if key.strip() in SWEPT and len(parts := split(text)) > 1:
            several[key.strip()] = several.get(key.strip(), []) + parts
        else:
            words.append(word)
    if several:
        grid = ", ".join(f"{key}: [{', '.join(parts)}]" for key, parts in several.items())
        words.append(f"sweep.grid={{{grid}}}")
    words += [f"sweep.seeds={seeds}"] if seeds is not None else []
    return words + ([f"sweep.halve={str(halve).lower()}"] if halve is not None else [])


def require_grid(config: Config, file: Config | None = None) -> None:
    """Raises CONFIG_CONFLICT for a sweep of one recipe, or if ``file``, the config without the command line, has
    another grid."""
    if file is not None and file.sweep.grid and file.sweep.grid != config.sweep.grid:
        raise ConfigError(
            "CONFIG_CONFLICT",
            "the config file and the command line both have values to sweep.",
            where="sweep.grid",
            fix="give all of them in one place.",
        )
    if not config.sweep.grid:
        raise ConfigError(
            "CONFIG_CONFLICT",
            "nothing to sweep: no setting has several values.",
            where="command line",
            fix="separate values by commas: train.lr=1e-4,3e-4 adapter.rank=8,32. "
            f"A recipe's settings: {', '.join(SWEPT)}.",
        )


def split(text: str) -> list[str]:
    """At commas outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in "]})":
            depth -= 1
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]
