"""Pairs of answers to the same test rows, shown without their authors. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tunewright.core.records import Choice, ScoreLine
from tunewright.core.records.people import Side
from tunewright.data.text import content_hash, without_thoughts


@dataclass(frozen=True)
class Pair:
    """Two answers to one row. ``key`` identifies them, and decides which is on the left. ``question``: (role, text) of
    what people are shown; ``instruction``: the system message, which is in it only if rows differ in it. ``reference``:
    the answer of the row."""

    row: int
    where: str
    question: tuple[tuple[str, str], ...]
    tuned: str
    other: str
    key: str
    instruction: str = ""
    reference: str = ""
    tuned_cut: bool = False
    other_cut: bool = False

    @property
    def tuned_is_left(self) -> bool:
        return int(self.key[0], 16) % 2 == 0

    @property
    def sides(self) -> tuple[str, str]:
        """The answer on the left, and the one on the right."""
        return (self.tuned, self.other) if self.tuned_is_left else (self.other, self.tuned)

    @property
    def cut(self) -> tuple[bool, bool]:
        """Of the `sides`, which ended at the token limit."""
        return (self.tuned_cut, self.other_cut) if self.tuned_is_left else (self.other_cut, self.tuned_cut)

    @property
    def same(self) -> bool:
        """Whether both answers are the same, so that nobody needs to be asked."""
        return self.tuned.strip() == self.other.strip()

    def value(self, chosen: Side) -> float:
        """1 if the tuned answer was chosen, 0 if the other one, 0.5 for a tie."""
        if chosen == "tie":
            return 0.5
        return float((chosen == "left") == self.tuned_is_left)


def pairs(tuned: Sequence[ScoreLine], other: Sequence[ScoreLine]) -> list[Pair]:
    """The pairs of all rows, in the order of the hash of their prompts, so that nobody picks the first ones."""
    made = [_pair(a, b) for a, b in zip(tuned, other, strict=True)]
    made.sort(key=lambda pair: content_hash("\n".join(text for _, text in pair.question)))
    if len({pair.instruction for pair in made}) == 1:
        return made
    return [replace(p, question=(("system", p.instruction), *p.question)) if p.instruction else p for p in made]


def _pair(tuned: ScoreLine, other: ScoreLine) -> Pair:
    assert tuned.row == other.row
    turns = [(m.role, m.content) for m in tuned.messages if m.content]
    shown = tuple(turn for turn in turns if turn[0] != "system")
    instruction = "\n".join(text for role, text in turns if role == "system")
    key = hashlib.sha256("\0".join((str(tuned.row), tuned.answer, other.answer)).encode("utf-8", "surrogatepass"))
    answers = (without_thoughts(tuned.answer), without_thoughts(other.answer))
    cut = bool(tuned.cut), bool(other.cut)
    return Pair(tuned.row, tuned.where, shown, *answers, key.hexdigest()[:16], instruction, tuned.target, *cut)


def chosen(shown: Sequence[Pair], choices: Iterable[Choice], against: str) -> dict[int, Side]:
    """The choice for each row that has one: the last, if it was between these answers and not taken back."""
    key_of, last = {pair.row: pair.key for pair in shown}, dict[int, Side]()
    for choice in choices:
        if choice.against != against or key_of.get(choice.row) != choice.key:
            continue
        last.pop(choice.row, None)
        if choice.chosen is not None:
            last[choice.row] = choice.chosen  # the key also decides the sides, so they are as they were
    return last
