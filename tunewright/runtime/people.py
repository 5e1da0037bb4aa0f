"""Blind comparisons of a run: what people are asked, and what they have chosen, in people.jsonl of the run folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tunewright.core import records, run_folder
from tunewright.core.console import Console
from tunewright.core.errors import ConfigError, RunError
from tunewright.core.records import Choice, JudgeLine, Preferences, Preferred, ScoreLine, Verdict
from tunewright.core.records.people import Side
from tunewright.core.run_folder import Run
from tunewright.data.endpoints.openai_endpoint import Endpoint
from tunewright.judge.people import judge as judging
from tunewright.judge.people.judge import Judge
from tunewright.judge.people.pairs import Pair, chosen, pairs
from tunewright.judge.people.win_rate import win_rate

REFERENCE = "reference"  # instead of an arm: the reference answers


@dataclass(frozen=True)
class Comparing:
    """``pairs``: of all test rows, of which people see the first ``count``; ``clusters``: the group of near-duplicates
    of each row; ``rubric``: which answer is better, "" for the default. Choices by another rubric do not count."""

    run: Run
    against: str
    pairs: tuple[Pair, ...]
    count: int
    clusters: dict[int, int]
    alpha: float
    rubric: str = ""

    @property
    def shown(self) -> tuple[Pair, ...]:
        return self.pairs[: self.count]

    @property
    def asked(self) -> list[Pair]:
        """The pairs that people are asked about."""
        return [pair for pair in self.shown if not pair.same]

    def choices(self) -> dict[int, Side]:
        """What was chosen so far, by row."""
        every = records.read_lines(self.run.people, Choice)
        return chosen(self.pairs, (choice for choice in every if choice.rubric == self.rubric), self.against)

    def left(self) -> list[Pair]:
        """The pairs without a choice."""
        known = self.choices()
        return [pair for pair in self.asked if pair.row not in known]

    def next(self) -> Pair | None:
        """The first pair without a choice."""
        return next(iter(self.left()), None)

    def pair_of(self, row: int) -> Pair | None:
        """The pair of a row that people are, or were, asked about."""
        return next((pair for pair in self.pairs if pair.row == row and not pair.same), None)

    def choose(self, row: int, side: Side | None) -> None:
        """Adds a line. ``side``: None takes the last choice for the row back. Raises KeyError for a row that
        nobody is asked about, RUN_DISK."""
        pair = self.pair_of(row)
        if pair is None:
            raise KeyError(row)
        line = Choice(
            row=row,
            against=self.against,
            key=pair.key,
            left="tuned" if pair.tuned_is_left else "other",
            chosen=side,
            time=run_folder.now(),
            rubric=self.rubric,
        )
        records.append_line(self.run.people, line)

    def take_back(self) -> None:
        """Takes the last choice back, if there is one."""
        if known := self.choices():
            self.choose(list(known)[-1], None)

    def result(self, judge: Judge | None = None) -> Preferred:
        """What people preferred so far, and the judge, if it was asked about all rows. Without one, the judge that was
        asked before."""
        known, judged = self.choices(), None
        judge = judge or self._earlier_judge()
        if judge is not None:
            choices = judging.known(judge, self.pairs, records.read_lines(self.run.judge, JudgeLine))
            judged = judging.result(judge, self.pairs, choices, known, self.clusters, self.alpha)
        rate = win_rate(self.pairs, known, self.clusters, self.alpha, len(self.shown))
        return Preferred(against=self.against, asked=len(self.shown), rubric=self.rubric, people=rate, judge=judged)

    def _compared(self) -> tuple[Preferred, ...]:
        """The results in people.json."""
        before = records.existing(self.run.preferences, Preferences)
        return before.comparisons if before else ()

    def _earlier_judge(self) -> Judge | None:
        done = next((c.judge for c in self._compared() if (c.against, c.rubric) == (self.against, self.rubric)), None)
        return Judge(Endpoint(done.url, done.model), done.rubric) if done else None

    def save(self, result: Preferred) -> None:
        """Writes people.json, with the other comparisons after this one."""
        others = [c for c in self._compared() if (c.against, c.rubric) != (result.against, result.rubric)]
        records.write(self.run.preferences, Preferences(comparisons=(result, *others)))

    def unjudged(self, judge: Judge) -> list[tuple[Pair, judging.Order]]:
        """What the judge was not asked, or answered with no choice."""
        known = judging.known(judge, self.pairs, records.read_lines(self.run.judge, JudgeLine))
        orders: tuple[judging.Order, ...] = ("tuned", "other")
        return [(p, o) for p in self.pairs if not p.same for o in orders if known.get((p.row, o)) is None]

    def ask(self, judge: Judge, console: Console) -> None:
        """Asks the judge `unjudged`. Raises REMOTE_FAILED."""
        if todo := self.unjudged(judge):
            with console.bar("judge", len(todo), unit="choices") as tick:
                judging.judged(judge, self.against, todo, lambda line: records.append_line(self.run.judge, line), tick)


def comparing(run: Run, against: str, count: int, rubric: str | None = None) -> Comparing:
    """``against``: an arm, or `REFERENCE`; empty for the comparator. ``rubric``: as in `Comparing`; None for that of
    the last choice. Raises RUN_INCOMPLETE without a verdict, RUN_DAMAGED, CONFIG_RANGE for an arm that has no written
    answers."""
    run_folder.require(run, run.verdict, "prove")
    verdict = records.read(run.verdict, Verdict)
    tuned = _answers(run, "tuned", verdict.n)
    if tuned[0].answer_tokens is None:
        what = f"the answers of a {verdict.task} task are not texts to choose between."
        raise RunError("RUN_INCOMPLETE", what, where=str(run.path), fix="compare runs whose models write answers.")
    name = against or verdict.comparator.name
    others = {
        arm: lines for arm in verdict.arms if (lines := _answers(run, arm, verdict.n))[0].answer_tokens is not None
    }
    others[REFERENCE] = [line.model_copy(update={"answer": line.target, "cut": None}) for line in others.pop("tuned")]
    if name not in others:
        what = f"{name} is not an arm with written answers."
        raise ConfigError("CONFIG_RANGE", what, where="--against", fix=f"choose one of {', '.join(others)}.")
    clusters = {line.row: group for line, group in zip(tuned, verdict.groups, strict=True)}
    if rubric is None:
        before = [choice.rubric for choice in records.read_lines(run.people, Choice) if choice.against == name]
        rubric = before[-1] if before else ""
    return Comparing(run, name, tuple(pairs(tuned, others[name])), count, clusters, verdict.alpha, rubric)


def _answers(run: Run, arm: str, rows: int) -> list[ScoreLine]:
    """Raises RUN_DAMAGED if there is not one for each of the test ``rows``."""
    file = run.scores / f"{arm}.jsonl"
    lines = list(records.read_lines(file, ScoreLine))
    if len(lines) != rows:
        what = f"{len(lines)} answers, where the verdict is about {rows} rows."
        raise RunError("RUN_DAMAGED", what, where=str(file), fix="restore it from a backup, or start a new run.")
    return lines


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
