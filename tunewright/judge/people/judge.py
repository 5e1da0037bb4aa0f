"""A judge model: asked about every pair in both orders, and compared with people. No torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tunewright.core.records import Agreement, JudgeLine, JudgeResult, WinRate
from tunewright.core.records.people import Side
from tunewright.data.messages import Message, Prompt
from tunewright.data.text import without_thoughts
from tunewright.judge import statistics
from tunewright.judge.arms.openai_endpoint import Endpoint, ask
from tunewright.judge.people import ppi
from tunewright.judge.people.pairs import Pair
from tunewright.judge.people.win_rate import percent, rate_of

RUBRIC = "the one that a careful person who knows the subject would rather send"
LIMIT = 512  # tokens of a reply: a model that thinks first needs some
Order = Literal["tuned", "other"]
Chosen = Literal["first", "second", "tie"]


@dataclass(frozen=True)
class Judge:
    """``rubric``: which answer is better, in the user's words."""

    endpoint: Endpoint
    rubric: str = RUBRIC

    def prompt(self, pair: Pair, first: Order) -> Prompt:
        answers = (pair.tuned, pair.other) if first == "tuned" else (pair.other, pair.tuned)
        asked = "\n\n".join(f"[{role}]\n{text}" for role, text in pair.question)
        shown = "\n\n".join(f"[answer {n}]\n{text or '(nothing)'}" for n, text in enumerate(answers, 1))
        system = (
            f"You compare two answers to the same question. Choose the better answer: {self.rubric}. "
            "Neither length nor order is a merit. Reply with 1, 2 or tie, and nothing else."
        )
        return Prompt((Message("system", system), Message("user", f"{asked}\n\n{shown}")))

    def key(self, pair: Pair) -> str:
        """Of all that a choice depends on, except the row and the order."""
        parts = (pair.key, self.endpoint.model, self.rubric)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def judged(
    judge: Judge,
    against: str,
    todo: Sequence[tuple[Pair, Order]],
    write: Callable[[JudgeLine], None],
    progress: Callable[[int], None],
) -> None:
    """Asks about each pair in the order given, and writes a line for each. Raises REMOTE_FAILED; lines that are written
    stay."""
    step = judge.endpoint.concurrency
    for start in range(0, len(todo), step):
        part = todo[start : start + step]
        replies = ask(judge.endpoint, [judge.prompt(pair, first) for pair, first in part], LIMIT, progress)
        for (pair, first), reply in zip(part, replies, strict=True):
            line = JudgeLine(
                row=pair.row,
                against=against,
                key=judge.key(pair),
                first=first,
                chosen=read(reply.text),
                reply=reply.text[:500],
            )
            write(line)


def read(reply: str) -> Chosen | None:
    """The last choice that a reply names; None if it names none."""
    named = re.findall(r"(?<![\w.])(1|2|tie)(?!\w|\.\d)", without_thoughts(reply).lower())
    choices: dict[str, Chosen] = {"1": "first", "2": "second", "tie": "tie"}
    return choices[named[-1]] if named else None


def known(judge: Judge, shown: Sequence[Pair], lines: Iterable[JudgeLine]) -> dict[tuple[int, Order], Chosen | None]:
    """The judge's choices between these answers, by row and order."""
    keys = {pair.row: judge.key(pair) for pair in shown}
    return {(line.row, line.first): line.chosen for line in lines if keys.get(line.row) == line.key}


def result(
    judge: Judge,
    shown: Sequence[Pair],
    choices: Mapping[tuple[int, Order], Chosen | None],
    people: Mapping[int, Side],
    clusters: Mapping[int, int],
    alpha: float,
) -> JudgeResult | None:
    """None unless the judge was asked about all pairs, in both orders."""
    asked = [pair for pair in shown if not pair.same]
    if not asked or any((pair.row, first) not in choices for pair in asked for first in ("tuned", "other")):
        return None
    by_row = {pair.row: [_value(choices, pair, first) for first in ("tuned", "other")] for pair in asked}
    value = {pair.row: 0.5 if pair.same else sum(by_row[pair.row]) / 2 for pair in shown}
    decided = [c for c in choices.values() if c in ("first", "second")]
    corrected = _corrected(shown, people, value, clusters, alpha)
    return JudgeResult(
        model=judge.endpoint.model,
        alone=rate_of(shown, value, clusters, alpha),
        contradicted=sum(abs(a - b) == 1 for a, b in by_row.values()) / len(asked),
        first=decided.count("first") / len(decided) if decided else 0.5,
        longer=_longer(asked, value),
        unreadable=sum(c is None for c in choices.values()),
        agreement=_agreement(asked, people, value, clusters, alpha),
        corrected=corrected.interval if corrected else None,
        corrected_rate=corrected.mean if corrected else None,
        weight=corrected.weight if corrected else None,
    )


def _value(choices: Mapping[tuple[int, Order], Chosen | None], pair: Pair, first: Order) -> float:
    """1 if the tuned answer was chosen."""
    chosen = choices[pair.row, first]
    if chosen in (None, "tie"):
        return 0.5
    return float((chosen == "first") == (first == "tuned"))


def _longer(asked: Sequence[Pair], value: Mapping[int, float]) -> float | None:
    chosen = [
        (value[p.row] > 0.5) == (len(p.tuned) > len(p.other))
        for p in asked
        if value[p.row] != 0.5 and len(p.tuned) != len(p.other)
    ]
    return sum(chosen) / len(chosen) if chosen else None


def _agreement(
    asked: Sequence[Pair],
    people: Mapping[int, Side],
    value: Mapping[int, float],
    clusters: Mapping[int, int],
    alpha: float,
) -> Agreement | None:
    both = [p for p in asked if p.row in people and people[p.row] != "tie" and value[p.row] != 0.5]
    if not both:
        return None
    same = [float((p.value(people[p.row]) > 0.5) == (value[p.row] > 0.5)) for p in both]
    interval = statistics.mean_interval(same, [clusters[p.row] for p in both], alpha)
    return Agreement(rate=sum(same) / len(same), interval=interval, rows=len(both))


def _corrected(
    shown: Sequence[Pair],
    people: Mapping[int, Side],
    value: Mapping[int, float],
    clusters: Mapping[int, int],
    alpha: float,
) -> ppi.Estimate | None:
    """Pairs with the same answer are ties by anyone's choice."""
    labelled = [p for p in shown if p.same or p.row in people]
    rest = [p for p in shown if not p.same and p.row not in people]
    if sum(not p.same for p in labelled) < ppi.MIN_LABELLED:
        return None
    labels = [0.5 if p.same else p.value(people[p.row]) for p in labelled]
    groups = ([clusters[p.row] for p in labelled], [clusters[p.row] for p in rest])
    return ppi.mean(labels, [value[p.row] for p in labelled], [value[p.row] for p in rest], groups, alpha)


def lines(outcome: JudgeResult, people: WinRate | None, against: str) -> list[str]:
    """What the judge preferred, what its choices depend on, and whether it may speak for people."""
    against = against.replace("_", " ")
    alone = outcome.alone
    sentences = [
        f"{outcome.model} prefers tuned to {against} in {alone.rate:.0%} {percent(alone.interval)} of {alone.rows} "
        f"rows; its choice depends on the order in {outcome.contradicted:.0%}, "
        f"and is the first answer in {outcome.first:.0%}"
        + (f", the longer one in {outcome.longer:.0%}" if outcome.longer is not None else "")
        + (f"; {outcome.unreadable} of its replies could not be read" if outcome.unreadable else "")
    ]
    if outcome.agreement is None:
        sentences.append("no choices by people to compare it with: this is no evidence of what people prefer")
    else:
        a = outcome.agreement
        trust = "" if a.interval.low > 0.5 else ": not shown to agree more often than chance"
        sentences.append(f"it agrees with people on {a.rate:.0%} {percent(a.interval)} of {a.rows} rows{trust}")
    if outcome.corrected is not None:
        sentences.append(
            f"people prefer tuned in {outcome.corrected_rate:.0%} {percent(outcome.corrected)} of all rows, estimated "
            f"from people's choices and, with weight {outcome.weight:.2f}, the judge's"
        )
    elif people is not None and outcome.agreement is not None:
        sentences.append(f"choose on at least {ppi.MIN_LABELLED} rows for an estimate that also uses the judge")
    return sentences
