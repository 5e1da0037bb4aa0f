"""Rows that repeat others: duplicates, contradictions, and rows of one side that are also on another."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence

from tunewright.core.records.common import Side
from tunewright.data.messages import Chat, Example
from tunewright.data.remedies.change import Change
from tunewright.data.remedies.labels import Sides
from tunewright.data.split import same_question
from tunewright.data.text import exact
from tunewright.data.tool_calls import split_thoughts

RANK: dict[str, int] = {"train": 0, "dev": 1, "test": 2}

Kept = tuple[tuple[Example, ...], list[Change]]
Canonical = Callable[[Example], str]  # of the kind of the task: equal for targets that say the same


def key(example: Example, canonical: Canonical) -> Hashable:
    """Equal for rows that teach the same: prompt and answer, and the thoughts and the weight of every turn."""
    turns = [m for m in example.messages if m.role == "assistant"]
    chat = example if isinstance(example, Chat) else None
    others = chat and (exact(chat.rejected.text) if chat.rejected else "", chat.desirable)
    thoughts = [exact(f"{m.reasoning} {split_thoughts(m.content)[0]}") for m in turns]
    return (asked(example), canonical(example), others, *thoughts, *(m.trained for m in turns))


def asked(example: Example) -> str:
    """Prompts that differ only in letter case are one, because they are so more often by accident than answers are. Not
    so where words are tagged: capitals are what names are known by."""
    prompt = exact(example.whole_prompt)
    return prompt if isinstance(example, Chat) and example.tagged else prompt.casefold()


def question(example: Example, canonical: Canonical) -> str:
    """What rows must share to contradict each other: the prompt, and of preference rows both answers, in any order; of
    rated rows, the answer; of a query and a document everything, for another document may answer it too."""
    prompt = asked(example)
    if isinstance(example, Chat) and example.negatives is not None:
        return "\x00".join([prompt, canonical(example)])
    if isinstance(example, Chat) and example.desirable is not None:
        return f"{prompt}\x00{example.target}"  # as it is: what is rated may be how an answer is written
    if not (isinstance(example, Chat) and example.rejected):
        return prompt
    return "\x00".join([prompt, *sorted((exact(example.target), exact(example.rejected.text)))])


def claim(example: Example, canonical: Canonical) -> str:
    """What rows with one question contradict each other by: their answer, or its rating."""
    rating = example.desirable if isinstance(example, Chat) else None
    return canonical(example) if rating is None else str(rating)


def drop_duplicates(examples: Sequence[Example], canonical: Canonical) -> Kept:
    """The first of the rows that teach the same, as the finding DUPLICATES counts them."""
    first: dict[Hashable, Example] = {}
    changes: list[Change] = []
    kept: list[Example] = []
    for e in examples:
        original = first.setdefault(key(e, canonical), e)
        if original is e:
            kept.append(e)
        else:
            message = f"the same prompt and answer as {original.where}"
            changes.append(Change(e.where, "DUPLICATES", "data.duplicates=drop", message, dropped=True))
    return tuple(kept), changes


def drop_contradictions(examples: Sequence[Example], canonical: Canonical) -> Kept:
    """For each prompt, the rows with its most frequent answer; none if two answers are equally frequent. Of answers
    that differ only in letter case, those that are written as most of them."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for e in examples:
        answers[question(e, canonical)][claim(e, canonical)] += 1
    best = {asked: _most_frequent(claims) for asked, claims in answers.items()}
    changes: list[Change] = []
    kept: list[Example] = []
    for e in examples:
        chosen = best[question(e, canonical)]
        if claim(e, canonical) == chosen:
            kept.append(e)
        else:
            more = "" if chosen is None else ", and more of them"
            message = f"other rows answer the same question differently{more}"
            changes.append(Change(e.where, "CONTRADICTIONS", "data.contradictions=drop", message, dropped=True))
    return tuple(kept), changes


def _most_frequent(claims: Counter[str]) -> str | None:
    """None if two are equally frequent that differ in more than letter case."""
    folded = Counter[str]()
    for text, count in claims.items():
        folded[text.casefold()] += count
    (best, most), *others = folded.most_common(2)
    if others and others[0][1] == most:
        return None
    return max((text for text in claims if text.casefold() == best), key=claims.__getitem__)


def drop_leaks(sides: Sides, cluster: Sequence[int]) -> tuple[Sides, list[Change]]:
    """Without the rows of train that are near-duplicates of rows of dev or test, and without those of dev that are
    near-duplicates of rows of test. ``cluster``: of the rows of all sides, in order."""
    placed = [(side, e) for side in sides for e in sides[side]]
    best: dict[int, tuple[Side, Example]] = {}
    for c, row in zip(cluster, placed, strict=True):
        if c not in best or RANK[row[0]] > RANK[best[c][0]]:
            best[c] = row
    changes: list[Change] = []
    kept: dict[Side, list[Example]] = {side: [] for side in sides}
    for c, (side, e) in zip(cluster, placed, strict=True):
        winner, original = best[c]
        if side == winner:
            kept[side].append(e)
            continue
        message = f"{same_question(e, original)} as the {winner} row {original.where}"
        changes.append(Change(e.where, "SPLIT_LEAK", "data.leaks=drop", message, dropped=True))
    return {side: tuple(examples) for side, examples in kept.items()}, changes
