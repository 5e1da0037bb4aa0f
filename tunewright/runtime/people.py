"""Blind comparisons of a run: what people are asked, and what they have chosen, in people.jsonl of the run folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from tunewright.core import records, run_folder
from tunewright.core.errors import ConfigError, RunError
from tunewright.core.records import Choice, Preferences, ScoreLine, Verdict
from tunewright.core.records.people import Side
from tunewright.core.run_folder import Run
from tunewright.judge.people.pairs import Pair, chosen, pairs
from tunewright.judge.people.win_rate import win_rate

REFERENCE = "reference"  # instead of an arm: the reference answers


@dataclass(frozen=True)
class Comparing:
    """``shown``: all pairs, in order; ``clusters``: the group of near-duplicates of each row."""

    run: Run
    against: str
    shown: tuple[Pair, ...]
    clusters: dict[int, int]
    alpha: float

    @property
    def asked(self) -> list[Pair]:
        """The pairs that people are asked about."""
        return [pair for pair in self.shown if not pair.same]

    def choices(self) -> dict[int, Side]:
        """What was chosen so far, by row."""
        return chosen(self.shown, records.read_lines(self.run.people, Choice), self.against)

    def next(self) -> Pair | None:
        """The first pair without a choice."""
        known = self.choices()
        return next((pair for pair in self.asked if pair.row not in known), None)

    def choose(self, row: int, side: Side | None) -> None:
        """Adds a line. ``side``: None takes the last choice for the row back. Raises KeyError for a row that nobody is
        asked about, RUN_DISK."""
        pair = {pair.row: pair for pair in self.asked}[row]
        left: Literal["tuned", "other"] = "tuned" if pair.tuned_is_left else "other"
        line = Choice(row=row, against=self.against, key=pair.key, left=left, chosen=side, time=run_folder.now())
        records.append_line(self.run.people, line)

    def take_back(self) -> None:
        """Takes the last choice back, if there is one."""
        if known := self.choices():
            self.choose(list(known)[-1], None)

    def result(self) -> Preferences:
        """What people preferred so far."""
        rate = win_rate(self.shown, self.choices(), self.clusters, self.alpha)
        return Preferences(against=self.against, asked=len(self.shown), people=rate)


def comparing(run: Run, against: str, count: int) -> Comparing:
    """``against``: an arm, or `REFERENCE`; empty for the comparator. Raises RUN_INCOMPLETE without a verdict,
    CONFIG_RANGE for an arm that has no written answers."""
    run_folder.require(run, run.verdict, "prove")
    verdict = records.read(run.verdict, Verdict)
    tuned = _answers(run, "tuned")
    if tuned[0].answer_tokens is None:
        what = f"the answers of a {verdict.task} task are not texts to choose between."
        raise RunError("RUN_INCOMPLETE", what, where=str(run.path), fix="compare runs whose models write answers.")
    name = against or verdict.comparator.name
    others = {arm: lines for arm in verdict.arms if (lines := _answers(run, arm))[0].answer_tokens is not None}
    others[REFERENCE] = [line.model_copy(update={"answer": line.target}) for line in others.pop("tuned")]
    if name not in others:
        what = f"{name} is not an arm with written answers."
        raise ConfigError("CONFIG_RANGE", what, where="--against", fix=f"choose one of {', '.join(others)}.")
    clusters = {line.row: group for line, group in zip(tuned, verdict.groups, strict=True)}
    shown = pairs(tuned, others[name], count)
    return Comparing(run, name, tuple(shown), clusters, verdict.alpha)


def _answers(run: Run, arm: str) -> list[ScoreLine]:
    return list(records.read_lines(run.scores / f"{arm}.jsonl", ScoreLine))


@contextmanager
def alone(run: Run) -> Iterator[None]:
    """Only one process at a time asks people about a run. Raises RUN_LOCKED."""
    from filelock import FileLock, Timeout

    lock = FileLock(run.path / ".people.lock", mode=0o600)
    with run_folder.disk_errors(run.path):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            what = "another `tunewright compare` is open for this run."
            raise RunError("RUN_LOCKED", what, where=str(run.path), fix="use its page, or end it.") from None
    try:
        yield
    finally:
        lock.release()
