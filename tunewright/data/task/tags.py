"""Answers that are one tag for each word of a text, for `train.method=tag`: entities, if the tags mark where spans
begin and continue (BIO), otherwise tags by themselves.

A text is its words with one space between them, and its answer is the tags likewise, so no word or tag contains white
space.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tunewright.data import corpus_metrics, metrics
from tunewright.data.messages import Chat, Example
from tunewright.data.metrics import METRICS
from tunewright.data.scores import Readings
from tunewright.data.structure.comparison import FieldCounts
from tunewright.data.task.kind import Task, TaskKind, one_answer

Span = tuple[str, int, int]  # type, first word, one past the last
# BIOES has E and S for the last and for the only word of a span, BILOU has L and U.
_MARK = re.compile(r"O|[BIESLU](-.+)?")
_CONTINUES, _ENDS = ("I", "E", "L"), ("E", "S", "L", "U")
OUTSIDE = "O"


def words(text: str) -> list[str]:
    """The words of a text, or the tags of an answer."""
    return text.split()


def marks_spans(tags: Sequence[str]) -> bool:
    """Whether tags say where spans begin and continue."""
    return any(tag != OUTSIDE for tag in tags) and all(_MARK.fullmatch(tag) for tag in tags)


def spans(tags: Sequence[str]) -> set[Span]:
    """The spans of a text, as conlleval and seqeval read them: one begins at B, and also at an I that follows O or
    another type."""
    complete: set[Span] = set()
    begun: tuple[str, int] | None = None
    for at, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, kind = tag.partition("-")
        if begun is not None and not (prefix in _CONTINUES and kind == begun[0]):
            complete.add((*begun, at))
            begun = None
        if begun is None and prefix != OUTSIDE:
            begun = (kind, at)
        if begun is not None and prefix in _ENDS:
            complete.add((*begun, at + 1))
            begun = None
    return complete


def misplaced(tags: Sequence[str]) -> str | None:
    """The first tag that continues a span which has not begun, with its word's number; None if there is none."""
    before = OUTSIDE
    for at, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        inside = before != OUTSIDE and before.partition("-")[0] not in _ENDS and before.partition("-")[2] == kind
        if prefix in _CONTINUES and not inside:
            return f"{tag} of word {at + 1} follows {before if at else 'nothing'}"
        before = tag
    return None


def detect(examples: Sequence[Example]) -> Task | None:
    """The task of tagged rows; None if a row has not one tag for each word."""
    rows = [(words(e.question), words(e.target)) for e in examples]
    if not one_answer(examples) or any(len(text) != len(tags) or not tags for text, tags in rows):
        return None
    known = tuple(sorted({tag for _, tags in rows for tag in tags}))
    if marks_spans(known):
        return Task(ENTITIES, METRICS["entity_f1"], f"tags of spans in {len(examples)} rows", label_set=known)
    return Task(TAGS, METRICS["token_accuracy"], f"{len(known)} tags of words in {len(examples)} rows", label_set=known)


def given_tags(answer: str, count: int) -> list[str]:
    """The tags of an answer to a text of so many words: those that it lacks are O, and what it has besides is left."""
    tags = words(answer)[:count]
    return [*tags, *[OUTSIDE] * (count - len(tags))]


def _read_spans(task: Task, example: Example, answer: str) -> Readings:
    target = words(example.target)
    given = [tag if _MARK.fullmatch(tag) else OUTSIDE for tag in given_tags(answer, len(target))]
    wanted, answered = spans(target), spans(given)
    right = len(wanted & answered)
    counts = FieldCounts(right=right, wrong=len(answered) - right, missed=len(wanted) - right)
    return _readings(example, answer, counts)


def _read_tags(task: Task, example: Example, answer: str) -> Readings:
    target = words(example.target)
    right = sum(a == b for a, b in zip(target, given_tags(answer, len(target)), strict=True))
    return _readings(example, answer, FieldCounts(right=right, wrong=len(target) - right, missed=len(target) - right))


def _readings(example: Example, answer: str, counts: FieldCounts) -> Readings:
    equal = float(words(example.target) == words(answer))
    return Readings(exact_match=equal, strict_match=metrics.strict_match(example.target, answer), fields=counts)


def _instruct(task: Task, train: Sequence[Chat]) -> str:
    return f"Answer with one of these tags for each word, separated by spaces: {', '.join(task.label_set)}."


ENTITIES = TaskKind(
    name="entities",
    detect=detect,
    read=_read_spans,
    instruct=_instruct,
    corpus=corpus_metrics.ENTITY_MICRO_F1,
    summary=("entity_micro_f1", "token_accuracy", "exact_match"),
)
TAGS = TaskKind(
    name="tags",
    detect=detect,
    read=_read_tags,
    instruct=_instruct,
    corpus=corpus_metrics.TAG_MACRO_F1,
    summary=("tag_macro_f1", "exact_match"),
)
