"""Hold-out by content: a row's side depends on what it says, not on its place, so it is train, dev or test for ever."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tunewright.core.errors import DataError, Problem, data_error
from tunewright.data.examples import Chat, Example, content_hash, normalised, question

# Without a word of our own, rows that somebody has already divided by a plain content hash would all fall on one side.
SALT = "tunewright split 1: "
SPAN = 13
LARGEST = 5


@dataclass(frozen=True)
class Split:
    """Indices into the examples of the train file, or of the user's own dev and test files."""

    train: tuple[int, ...]
    dev: tuple[int, ...]
    test: tuple[int, ...]


def hold_out(examples: Sequence[Example], cluster: Sequence[int], dev: float, test: float) -> Split:
    """Whole clusters of near-duplicates go to one side, that of one of their rows; a cluster of more than a tenth of all rows goes to
    train, because it would be most of dev or test.

    ``dev`` and ``test`` are expected shares; 0 means that the side comes from elsewhere. Raises DATA_TOO_FEW when train, or a
    wanted test, would be empty. A small set may leave dev empty: training then has no dev loss and keeps its last weights.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for i, c in enumerate(cluster):
        members[c].append(i)
    sides: dict[str, list[int]] = {"train": [], "dev": [], "test": []}
    for group in members.values():
        # The row that speaks for its cluster is found by another hash than the one that places it: the smallest of many placing
        # hashes is small, and every large cluster would go to test.
        speaker = min((question(examples[i]) for i in group), key=content_hash)
        place = int(content_hash(f"{SALT}{speaker}")[:16], 16) / 2**64
        side = "test" if place < test else "dev" if place < test + dev else "train"
        sides["train" if len(group) > max(LARGEST, len(examples) / 10) else side] += group
    for side, wanted in (("train", 1.0), ("test", test)):
        if wanted and not sides[side]:
            raise data_error(
                "DATA_TOO_FEW",
                f"{len(members)} different questions leave no row for {side}.",
                where=examples[0].where,
                fix=f"bring more rows, or a larger split.{side}." if side != "train" else "bring more rows.",
            )
    return Split(*(tuple(sorted(sides[s])) for s in ("train", "dev", "test")))


def check_leaks(examples: Sequence[Example], sides: Sequence[str], cluster: Sequence[int]) -> None:
    """Raises SPLIT_LEAK with every row that asks (nearly) the same question as a row of another side.

    ``sides[i]`` names the user's own file that row i came from; ``cluster`` is that of `near.alike` over all of them.
    """
    first: dict[int, int] = {}
    problems = []
    for i, example in enumerate(examples):
        j = first.setdefault(cluster[i], i)
        if sides[i] != sides[j]:
            same = normalised(question(example)) == normalised(question(examples[j]))
            how = "the same question as" if same else "nearly the same question as"
            problems.append(
                Problem(
                    "SPLIT_LEAK",
                    f"this {sides[i]} row is {how} the {sides[j]} row {examples[j].where}.",
                    example.where,
                    "remove it from one of the files.",
                )
            )
    if problems:
        raise DataError(problems)


def overlaps(examples: Sequence[Example], train: Sequence[int], test: Sequence[int]) -> tuple[int, ...]:
    """Test rows that share a run of 13 words, which at most 1 % of the training rows have, with a training row.

    Thirteen words is what evaluation harnesses decontaminate by; a run that many rows share is a template, not a leak.
    """
    seen: Counter[str] = Counter()
    for i in train:
        seen.update(spans(_said(examples[i])))
    most = max(1, len(train) // 100)
    rare = {span for span, count in seen.items() if count <= most}
    return tuple(i for i in test if rare & spans(_said(examples[i])))


def _said(example: Example) -> str:
    return f"{question(example)}\n{example.target}" if isinstance(example, Chat) else example.text


def spans(text: str, size: int = SPAN) -> set[str]:
    """Runs of ``size`` words."""
    words = re.findall(r"\w+", normalised(text))
    return {" ".join(words[i : i + size]) for i in range(len(words) - size + 1)}
