"""A judge model: asked about every pair in both orders, and compared with people. No torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tunewright.core.records import Agreement, JudgeLine, JudgeResult, WinRate
from tunewright.core.records.common import Interval
from tunewright.core.records.people import Side
from tunewright.data.endpoints.openai_endpoint import Endpoint, Refused, ask_each
from tunewright.data.messages import Message, Prompt
from tunewright.data.text import without_thoughts
from tunewright.judge import statistics
from tunewright.judge.people import ppi
from tunewright.judge.people.pairs import Pair
from tunewright.judge.people.win_rate import percent, rate_of, rate_text

RUBRIC = "the one that a careful person who knows the subject would rather send"
LIMIT = 512  # tokens of a reply: a model that thinks first needs some
# Fractions of the replies that name no answer, and of the rows on which the order decides, from which there is no win
# rate.
UNREADABLE, CONTRADICTED = 0.1, 0.5
MOST_REFUSED = 3  # questions, before any is answered
CHOICE = re.compile(
    r"(?:(?:i (?:choose|prefer|pick)|(?:the )?better(?: one| answer)?(?: is)?|(?:(?:my|the) )?(?:choice|verdict|winner)"
    r"(?: is)?)[:*\s]+)?(?:the )?(?:answer[:*\s]*)?[\[(]?(1|2|tie|neither|both)[\])]?(?:[*\s]+(?:is better|wins))?"
)
Order = Literal["tuned", "other"]
Chosen = Literal["first", "second", "tie"]


@dataclass(frozen=True)
class Judge:
    """``rubric``: which answer is better, in the user's words. ``max_tokens``: of a reply."""

    endpoint: Endpoint
    rubric: str = RUBRIC
    max_tokens: int = LIMIT

    def prompt(self, pair: Pair, first: Order) -> Prompt:
        answers = (pair.tuned, pair.other) if first == "tuned" else (pair.other, pair.tuned)
        turns = [("system", pair.instruction)] if pair.instruction else []
        turns += [turn for turn in pair.question if turn[0] != "system"]
        asked = "\n\n".join(f"[{role}]\n{text}" for role, text in turns)
        shown = "\n\n".join(f"[answer {n}]\n{text or '(nothing)'}" for n, text in enumerate(answers, 1))
        system = (
            f"You compare two answers to the same question. Choose the better answer: {self.rubric}. "
            "Ignore the order of the answers, and ignore their length unless the criterion is about length. "
            "Reply with 1, 2 or tie, and nothing else."
        )
        return Prompt((Message("system", system), Message("user", f"{asked}\n\n{shown}")))

    def key(self, pair: Pair) -> str:
        """Of all that a choice depends on, except the order."""
        asked = (message.content for message in self.prompt(pair, "tuned").messages)
        parts = (pair.key, self.endpoint.url, self.endpoint.model, *asked)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def judged(
    judge: Judge,
    against: str,
    todo: Sequence[tuple[Pair, Order]],
    write: Callable[[JudgeLine], None],
    progress: Callable[[int], None],
) -> None:
    """Asks about each pair in the order given, and writes a line for each reply as it comes; a question that the
    endpoint refuses is a reply that names no answer. Raises REMOTE_FAILED, after writing the replies that came."""
    prompts, answered, refused = [judge.prompt(pair, first) for pair, first in todo], False, 0
    for place, reply in ask_each(judge.endpoint, prompts, judge.max_tokens):
        pair, first = todo[place]
        if isinstance(reply, Refused):
            refused += 1
            if not answered and refused == MOST_REFUSED:
                raise reply  # it refuses whatever it is asked
            text, choice = str(reply), None
        else:
            answered = True
            text, choice = reply.text, None if reply.cut else read(reply.text)
        key = judge.key(pair)
        write(JudgeLine(row=pair.row, against=against, key=key, first=first, chosen=choice, reply=text[:500]))
        progress(1)


def read(reply: str) -> Chosen | None:
    """The choice that a reply consists of; or its first or last line, if the others do not contradict it. None for
    any other text: "answer 2 is worse" names an answer and does not choose it."""
    lines = [line for line in without_thoughts(reply).strip().splitlines() if line.strip()]
    named = [_choice(line) for line in lines]
    distinct = {choice for choice in named if choice is not None}
    if len(distinct) != 1 or (named[0] is None and named[-1] is None):
        return None
    (choice,) = distinct
    if named[-1] is None:  # what follows the choice may take it back
        rest = " ".join(line for line, choice in zip(lines, named, strict=True) if choice is None)
        mentioned = set(re.findall(r"(?<![\w.])[12](?!\w|\.\d)", rest))
        own = {"first": {"1"}, "second": {"2"}, "tie": set[str]()}[choice]
        return choice if own <= mentioned or not mentioned else None
    return choice


def _choice(line: str) -> Chosen | None:
    choices: dict[str, Chosen] = {"1": "first", "2": "second", "tie": "tie", "neither": "tie", "both": "tie"}
    matched = CHOICE.fullmatch(line.strip(" \t*_`'\".:()[]").lower())
    return choices[matched[1]] if matched else None


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
    replies = [(choices[pair.row, "tuned"], choices[pair.row, "other"]) for pair in asked]
    decided = [c for both in replies for c in both if c in ("first", "second")]
    readable = [pair for pair, both in zip(asked, replies, strict=True) if None not in both]
    unreadable = sum(c is None for both in replies for c in both)
    contradicted = sum(len(set(by_row[p.row])) > 1 for p in readable) / max(1, len(readable))
    usable = unreadable <= UNREADABLE * 2 * len(asked) and contradicted <= CONTRADICTED
    corrected = _corrected(shown, people, value, clusters, alpha) if usable else None
    return JudgeResult(
        model=judge.endpoint.model,
        url=judge.endpoint.url,
        rubric=judge.rubric,
        alone=rate_of(shown, value, clusters, alpha),
        asked=len(asked),
        contradicted=contradicted,
        first=decided.count("first") / len(decided) if decided else 0.5,
        longer=_longer(asked, value),
        unreadable=unreadable,
        usable=usable,
        agreement=_agreement(asked, people, value, clusters, alpha) if usable else None,
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
    groups = [clusters[p.row] for p in both]
    y = np.array([p.value(people[p.row]) > 0.5 for p in both], float)
    f = np.array([value[p.row] > 0.5 for p in both], float)
    same, prefers, judges = (y == f).astype(float), y.mean(), f.mean()
    expected = prefers * judges + (1 - prefers) * (1 - judges)
    # The influence of each row on the difference of both rates, of which the second depends on all rows.
    beyond = same - expected - (2 * judges - 1) * (y - prefers) - (2 * prefers - 1) * (f - judges)
    low, high, _ = statistics.clustered_interval(beyond, groups, alpha)
    return Agreement(
        rate=float(same.mean()),
        interval=statistics.mean_interval(same, groups, alpha),
        rows=len(both),
        expected=float(expected),
        beyond=Interval(low, high),
    )


def _corrected(
    shown: Sequence[Pair],
    people: Mapping[int, Side],
    value: Mapping[int, float],
    clusters: Mapping[int, int],
    alpha: float,
) -> ppi.Estimate | None:
    """Of the pairs that differ, those that people have seen are a random part; the others are ties, and known."""
    asked = [p for p in shown if not p.same]
    labelled, rest = [p for p in asked if p.row in people], [p for p in asked if p.row not in people]
    labels = [p.value(people[p.row]) for p in labelled]
    groups = ([clusters[p.row] for p in labelled], [clusters[p.row] for p in rest])
    estimate = ppi.mean(labels, [value[p.row] for p in labelled], [value[p.row] for p in rest], groups, alpha)
    return estimate and ppi.with_ties(estimate, len(shown) - len(asked), len(asked), alpha)


def lines(outcome: JudgeResult, people: WinRate | None, against: str) -> list[str]:
    """What the judge preferred, what its choices depend on, and whether it may speak for people."""
    name, alone = outcome.model, outcome.alone
    many = outcome.unreadable > UNREADABLE * 2 * outcome.asked
    if not outcome.usable and not many:
        order = f"the choice of {name} depends on the order of the answers in {outcome.contradicted:.0%} of the rows"
        return [f"{order}, so it has no win rate: use another judge, or another --rubric"]
    if not outcome.usable:
        return [
            f"{outcome.unreadable} of the {2 * outcome.asked} replies of {name} name no answer, so it has no win rate; "
            "the same command asks for these again (--judge-max-tokens: a model that thinks first may need more)"
        ]
    sentences = [
        f"by {name}, {rate_text(alone, against)}; of the {outcome.asked} rows that it was asked about, its choice "
        f"depends on the order in {outcome.contradicted:.0%}; it is the first answer in {outcome.first:.0%}"
        + (f", the longer one in {outcome.longer:.0%}" if outcome.longer is not None else "")
        + (f"; {outcome.unreadable} of its replies name no answer" if outcome.unreadable else "")
    ]
    if outcome.agreement is None:
        none = "no row on which both it and people prefer an answer" if people else "no choices by people"
        sentences.append(f"{none} to compare it with: this is no evidence of what people prefer")
    else:
        a = outcome.agreement
        trust = "" if a.above_chance else ": not shown to agree more often than chance"
        chance = f"; {a.expected:.0%} would be by chance" if a.expected is not None else ""
        sentences.append(f"it agrees with people on {a.rate:.0%} {percent(a.interval)} of {a.rows} rows{chance}{trust}")
    if outcome.corrected is not None:
        sentences.append(
            f"by people, the win rate over all rows is {outcome.corrected_rate:.1%} {percent(outcome.corrected)}, "
            f"estimated from their choices and, with weight {outcome.weight:.2f}, the judge's"
        )
    elif people is not None and outcome.agreement is not None:
        sentences.append(f"choose on at least {ppi.MIN_LABELLED} rows for an estimate that also uses the judge")
    return sentences
