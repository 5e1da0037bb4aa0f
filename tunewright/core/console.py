"""Messages and progress bars on stderr. Results are not printed here: they go to stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

KNOWN = 0.05  # of all items: the first of them say little about the rest, because a batch's prompts are read before


class Tick(Protocol):
    """Advances a progress bar by ``more`` items; ``status`` is shown next to the count."""

    def __call__(self, more: int, status: str = "") -> None: ...


@dataclass(frozen=True)
class Console:
    """``quiet`` prints only warnings. Without a terminal, a progress bar becomes a line every 15 seconds."""

    quiet: bool = False

    @property
    def console(self) -> Any:
        from rich.console import Console

        return Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str, style: str = "") -> None:
        if not self.quiet:
            self.console.print(text, style=style or None, markup=False)

    def warn(self, text: str) -> None:
        self.console.print(text, style="yellow", markup=False)

    @contextmanager
    def bar(self, title: str, total: int, done: int = 0, unit: str = "") -> Iterator[Tick]:
        """A progress bar over ``total`` items, advanced by the yielded function; ``unit`` is its default status."""
        if self.quiet:
            yield lambda more, status=unit: None
        elif sys.stderr.isatty():
            yield from self._live(title, total, done, unit)
        else:
            yield from self._lines(title, total, done, unit)

    def _live(self, title: str, total: int, done: int, unit: str) -> Iterator[Tick]:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(title, total=total, completed=done, status="")
            yield lambda more, status=unit: progress.update(task, advance=more, status=status)

    def _lines(self, title: str, total: int, done: int, unit: str) -> Iterator[Tick]:
        start = last = time.monotonic()
        current = done

        def tick(more: int, status: str = unit) -> None:
            nonlocal current, last
            current += more
            if current >= total or time.monotonic() - last > 15:
                last = time.monotonic()
                seconds, finished = last - start, current - done
                left = f", {seconds / finished * (total - current):.0f} s left" if finished >= KNOWN * total else ""
                self.say(f"{title}: {current}/{total} {status} ({seconds:.0f} s{left})")

        yield tick
