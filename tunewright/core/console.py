"""Talk and progress bars, on stderr. Data goes to stdout, elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol


class Tick(Protocol):
    """(how many more are done, a few words)."""

    def __call__(self, more: int, words: str) -> None: ...


@dataclass(frozen=True)
class Console:
    """``quiet`` says nothing but warnings. Without a terminal a bar becomes a line every 15 seconds."""

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
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Tick]:
        """Within, call the given function as things get done."""
        if self.quiet:
            yield lambda more, words: None
        elif sys.stderr.isatty():
            yield from self._live(title, total, done)
        else:
            yield from self._lines(title, total, done)

    def _live(self, title: str, total: int, done: int) -> Iterator[Tick]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[words]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(title, total=total, completed=done, words="")
            yield lambda more, words: progress.update(task, advance=more, words=words)

    def _lines(self, title: str, total: int, done: int) -> Iterator[Tick]:
        start = last = time.monotonic()
        now = done

        def note(more: int, words: str) -> None:
            nonlocal now, last
            now += more
            if now >= total or time.monotonic() - last > 15:
                last = time.monotonic()
                left = (last - start) / max(1, now - done) * (total - now)
                self.say(f"{title}: {now}/{total} {words} ({last - start:.0f} s, {left:.0f} s left)")

        yield note
