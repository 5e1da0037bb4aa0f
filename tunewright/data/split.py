"""Hold-out by content: a row's side depends on its text, not on its place, so it never changes."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tunewright.core.errors import DataError, Problem, data_error
from tunewright.data.examples import Example, content_hash, normalised

# Salted, because rows that somebody has already split by a plain content hash would all fall on one side.
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
    """A cluster of near-duplicates goes to one side, that of one of its rows; one with more than a tenth of all rows
    goes to train, because it would be most of dev or test.

    ``dev`` and ``test`` are expected fractions; 0 means that the side has its own file. Raises DATA_TOO_FEW if train
    would be empty, or test where it is needed. A small set may leave dev empty: training then has no dev loss and keeps
    its last weights.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for i, c in enumerate(cluster):
        members[c].append(i)
    sides: dict[str, list[int]] = {"train": [], "dev": [], "test": []}
    for group in members.values():
        # The row that represents its cluster is chosen by another hash than the one that places it: the smallest of
        # many placing hashes is small, and every large cluster would go to test.
        representative = min((examples[i].question for i in group), key=content_hash)
        place = int(content_hash(f"{SALT}{representative}")[:16], 16) / 2**64
        side = "test" if place < test else "dev" if place < test + dev else "train"
        sides["train" if len(group) > max(LARGEST, len(examples) / 10) else side] += group
    for side, wanted in (("train", 1.0), ("test", test)):
        if wanted and not sides[side]:
            raise data_error(
                "DATA_TOO_FEW",
                f"{len(members)} different questions leave no row for {side}.",
                where=examples[0].where,
                fix=f"provide more rows, or a larger split.{side}." if side != "train" else "provide more rows.",
            )
    return Split(**{side: tuple(sorted(rows)) for side, rows in sides.items()})


def check_leaks(examples: Sequence[Example], sides: Sequence[str], cluster: Sequence[int]) -> None:
    """Raises SPLIT_LEAK with every row that has (nearly) the same question as a row of another side.

    ``sides[i]`` names the user's own file that row i came from; ``cluster`` is that of `near_duplicates.alike` over all
    rows.
    """
    first: dict[int, int] = {}
    problems = []
    for i, example in enumerate(examples):
        j = first.setdefault(cluster[i], i)
        if sides[i] != sides[j]:
            same = normalised(example.question) == normalised(examples[j].question)
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
    """Test rows that share a run of 13 words with a training row, if at most 1 % of the training rows have that run.

    Thirteen words is what evaluation harnesses decontaminate by (GPT-3, 2005.14165, appendix C); a run that many rows
    share is a template, not a leak.
    """
    seen: Counter[str] = Counter()
    for i in train:
        seen.update(spans(_compared(examples[i])))
    most = max(1, len(train) // 100)
    rare = {span for span, count in seen.items() if count <= most}
    return tuple(i for i in test if rare & spans(_compared(examples[i])))


def _compared(example: Example) -> str:
    return f"{example.question}\n{example.target}"


def spans(text: str, size: int = SPAN) -> set[str]:
    """All runs of ``size`` words."""
    words = re.findall(r"\w+", normalised(text))
    return {" ".join(words[i : i + size]) for i in range(len(words) - size + 1)}
