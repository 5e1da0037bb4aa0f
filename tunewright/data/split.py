"""Hold-out by content: a row's side depends on its text, not on its position, so it never changes."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tunewright.core.errors import DataError, Problem, data_error
from tunewright.data.messages import Chat, Example
from tunewright.data.text import content_hash, normalised

# Salted: rows that were already split by a plain content hash would all fall on one side.
SALT = "tunewright split 1: "
SPAN = 13
SMALL_CLUSTER = 5  # rows; a cluster up to this size may be on any side, however few rows there are


@dataclass(frozen=True)
class Split:
    """Row indices of each side."""

    train: tuple[int, ...]
    dev: tuple[int, ...]
    test: tuple[int, ...]


def placed(examples: Sequence[Example], cluster: Sequence[int], dev: float, test: float) -> dict[str, list[int]]:
    """The rows of each side. A cluster of near-duplicates is assigned as a unit, by one of its rows, which people wrote
    if they wrote any; a cluster with more than a tenth of all rows (and over 5) goes to train, because it would make up
    most of dev or test, and one that models wrote goes to train instead of test."""
    members: dict[int, list[int]] = defaultdict(list)
    for i, c in enumerate(cluster):
        members[c].append(i)
    sides: dict[str, list[int]] = {"train": [], "dev": [], "test": []}
    for group in members.values():
        # The representative is chosen by a different hash than the one that places it: the smallest of many placing
        # hashes is small, and would send every large cluster to test.
        by_people = [i for i in group if not examples[i].author]
        representative = min((examples[i].question for i in by_people or group), key=content_hash)
        place = int(content_hash(f"{SALT}{representative}")[:16], 16) / 2**64
        side = "test" if place < test and by_people else "dev" if test <= place < test + dev else "train"
        sides["train" if len(group) > max(SMALL_CLUSTER, len(examples) / 10) else side] += group
    return sides


def hold_out(examples: Sequence[Example], cluster: Sequence[int], dev: float, test: float) -> Split:
    """Assigns every row to a side, as in `placed`.

    ``dev`` and ``test`` are expected fractions; 0 means that the side has its own file. Raises DATA_TOO_FEW if train is
    empty, or if test is empty but needed. With few rows, dev may be empty: training then has no dev loss and keeps its
    last weights.
    """
    sides, groups = placed(examples, cluster, dev, test), len(set(cluster))
    assert not any(examples[i].author for i in sides["test"]), "`remedies.synthetic` drops these"
    for side, wanted in (("train", 1.0), ("test", test)):
        if wanted and not sides[side]:
            raise data_error(
                "DATA_TOO_FEW",
                f"{groups} different questions are too few: none is left for {side}.",
                where=examples[0].where,
                fix=f"provide more rows, or a larger split.{side}." if side != "train" else "provide more rows.",
            )
    return Split(**{side: tuple(sorted(rows)) for side, rows in sides.items()})


def same_question(example: Example, other: Example) -> str:
    """What two rows have in common, in words."""
    same = normalised(example.question) == normalised(other.question)
    pair = isinstance(example, Chat) and example.negatives is not None
    return "the same question" if same else "nearly the same question" + (" or document" if pair else "")


def check_leaks(examples: Sequence[Example], sides: Sequence[str], cluster: Sequence[int]) -> None:
    """Raises SPLIT_LEAK with every row that has (nearly) the same question as a row of another side.

    ``sides[i]`` is the side of the file that row i came from; ``cluster`` is that of `near_duplicates.cluster` over all
    rows.
    """
    first: dict[int, int] = {}
    problems = []
    for i, example in enumerate(examples):
        j = first.setdefault(cluster[i], i)
        if sides[i] != sides[j]:
            question = same_question(example, examples[j])
            problems.append(
                Problem(
                    "SPLIT_LEAK",
                    f"this {sides[i]} row asks {question} as {sides[j]} row {examples[j].where}.",
                    example.where,
                    "set data.leaks=drop, which drops the row of train (that of dev, if the other is of test).",
                )
            )
    if problems:
        raise DataError(problems)


def overlaps(examples: Sequence[Example], train: Sequence[int], test: Sequence[int]) -> tuple[int, ...]:
    """Test rows sharing 13 consecutive words with a training row, unless over 1% of the training rows share them; and
    those whose whole prompt and answer a longer conversation of train begins with, and is trained on.

    Evaluation harnesses use 13-grams for decontamination (GPT-3, 2005.14165, appendix C); what many rows share is a
    template, not a leak.
    """
    asked = {i: spans(_question_and_answer(examples[i])) for i in test}
    wanted = set().union(*asked.values())  # of train, no others are kept
    seen: Counter[str] = Counter()
    for i in train:
        seen.update(wanted & spans(_question_and_answer(examples[i])))
    most = max(1, len(train) // 100)
    rare = {span for span, count in seen.items() if count <= most}
    turns = {turn for i in train for turn in _turns(examples[i])}
    return tuple(i for i in test if rare & asked[i] or turns.intersection(_turns(examples[i])[-1:]))


def _turns(example: Example) -> list[str]:
    """Every answer that is trained on, after what precedes it."""
    texts = [normalised(m.text) for m in example.messages]
    trained = [k for k, m in enumerate(example.messages) if m.role == "assistant" and m.trained]
    return [content_hash("\n".join(texts[: k + 1])) for k in trained]


def _question_and_answer(example: Example) -> str:
    return f"{example.question}\n{example.target}"


def spans(text: str, size: int = SPAN) -> set[str]:
    """All sequences of ``size`` consecutive words."""
    words = re.findall(r"\w+", normalised(text))
    return {" ".join(words[i : i + size]) for i in range(len(words) - size + 1)}
