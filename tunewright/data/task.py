"""The task of the rows: to give a label, a JSON object or a free-form answer, or to continue documents.

`KINDS` has one entry per kind of task: how it is detected, how a written answer is evaluated, how a set of answers is
summarised, and how a base model is instructed about the form of an answer. All that depends on the kind is there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunewright.data import corpus_metrics, metrics
from tunewright.data.corpus_metrics import CorpusMetric
from tunewright.data.examples import Chat, Example, Text
from tunewright.data.metrics import METRICS, Kind, Metric
from tunewright.data.scores import Answer, LabelProbs, Likelihood, Readings, Score, Written

# Conventions rather than measurements; `prove.metric` overrides their consequences.
JSON_FRACTION = 0.95  # a few malformed or refused answers do not change the task
MAX_LABELS = 60  # every label is scored for every row, so the cost grows with their number
ROWS_PER_LABEL = 5  # answers from a closed set repeat; free-form answers seldom do
LABEL_WORDS = 5  # a label is a word or a short phrase; a longer repeated answer is a sentence
SHORT_WORDS = 5  # so short an answer has one correct wording; a longer one has many, so it is compared by n-grams
SHOWN_CHARACTERS = 200  # of a document, as its "target" in scores/


@dataclass(frozen=True)
class Task:
    """``metric``: the metric of the verdict; ``reason``: how the kind was detected; ``labels``: empty unless it is a
    label task."""

    kind: TaskKind
    metric: Metric
    reason: str
    labels: tuple[str, ...] = ()

    def score(self, example: Example, answer: Answer) -> Score:
        """The score of an answer to an example, by the metric and by the additional metrics that are shown."""
        output, target, readings = answer.output, example.target, None
        if isinstance(output, Likelihood):
            target, value = example.text[:SHOWN_CHARACTERS], metrics.bits_per_byte(output.nats, output.bytes)
        elif isinstance(output, LabelProbs):
            value = float(answer.text == target)
        else:
            assert self.metric.score is not None, self.metric.name
            readings, value = self.kind.read(target, answer.text), self.metric.score(target, answer.text)
        return Score(where=example.where, target=target, answer=answer, score=value, readings=readings)

    def summary(self, scores: Sequence[Score]) -> dict[str, float]:
        """The additional metrics: the corpus metric, and the means of the readings of written answers."""
        values: dict[str, float] = {}
        for name in self.kind.summary if scores else ():
            if name == self.kind.corpus.name:
                values[name] = self.kind.corpus.of(scores, self.labels)
            elif isinstance(scores[0].answer.output, Written):
                values[name] = float(np.mean([_READING[name](s) for s in scores]))
        return values

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind.name, "metric": self.metric.name, "reason": self.reason, "labels": self.labels}


def _written(score: Score) -> tuple[Written, Readings]:
    assert isinstance(score.answer.output, Written)
    assert score.readings is not None
    return score.answer.output, score.readings


def _valid(score: Score) -> bool:
    counts = _written(score)[1].fields
    assert counts is not None
    return counts.valid


_READING: dict[str, Callable[[Score], float]] = {
    "valid_json": _valid,
    "exact_match": lambda s: _written(s)[1].exact_match,
    "strict_match": lambda s: _written(s)[1].strict_match,
    "cut_answers": lambda s: _written(s)[0].cut,
}


@dataclass(frozen=True)
class TaskKind:
    """``detect``: the task of these rows, None if they are of another kind. ``read``: compares a written answer with
    its target. ``instruct``: describes the form of an answer to a model that has not seen the rows. ``prompted``:
    whether rows have a prompt that can be answered. ``summary``: names of the additional metrics, in display order."""

    name: Kind
    detect: Callable[[Sequence[Example]], Task | None]
    read: Callable[[str, str], Readings]
    instruct: Callable[[Task, Sequence[Chat]], str]
    corpus: CorpusMetric
    summary: tuple[str, ...]
    prompted: bool = True

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics that the verdict can use."""
        return tuple(m for m in METRICS.values() if self.name in m.tasks)


def detect_task(examples: Sequence[Example]) -> Task:
    """The task, from the first of `KINDS` that detects it; the last accepts every row that has an answer."""
    return next(task for kind in KINDS if (task := kind.detect(examples)) is not None)


# -- raw text


def _detect_text(examples: Sequence[Example]) -> Task | None:
    if not isinstance(examples[0], Text):
        return None
    reason = "raw text: bits per byte of held-out documents"
    return Task(TEXT, METRICS["bits_per_byte"], reason)


def _no_answer(*_: Any) -> Any:
    raise AssertionError("documents have no answers")


# -- JSON


def _detect_json(examples: Sequence[Example]) -> Task | None:
    objects = sum(metrics.strict_object(e.target) is not None for e in examples)
    if objects < JSON_FRACTION * len(examples):
        return None
    return Task(JSON, METRICS["field_f1"], f"{objects} of {len(examples)} answers are JSON objects")


def _read_json(target: str, answer: str) -> Readings:
    fields = metrics.compare_fields(target, answer)
    return Readings(metrics.exact_match(target, answer), metrics.strict_match(target, answer), fields=fields)


def _instruct_json(task: Task, train: Sequence[Chat]) -> str:
    counts: Counter[str] = Counter()
    for example in train:
        counts.update(list(metrics.strict_object(example.target) or {}))
    keys = ", ".join(sorted(counts, key=lambda k: (-counts[k], k))[:40])
    return f"Answer with one JSON object and nothing else. Use only these keys, and only those that apply: {keys}."


# -- labels


def _detect_label(examples: Sequence[Example]) -> Task | None:
    """A few distinct short answers, each repeated, to single-turn questions."""
    targets = [e.target for e in examples]
    labels = tuple(sorted(set(targets)))
    single = all(len(e.messages) <= 3 for e in examples)
    short = max(len(t.split()) for t in targets) <= LABEL_WORDS
    if not (single and short and len(labels) <= min(MAX_LABELS, max(2, len(targets) // ROWS_PER_LABEL))):
        return None
    return Task(LABEL, METRICS["accuracy"], f"{len(labels)} different short answers in {len(targets)} rows", labels)


def _read_label(target: str, answer: str) -> Readings:
    return Readings(metrics.exact_match(target, answer), metrics.strict_match(target, answer))


def _instruct_label(task: Task, train: Sequence[Chat]) -> str:
    return f"Answer with exactly one of these labels and nothing else: {', '.join(task.labels)}."


# -- free-form answers


def _median_words(examples: Sequence[Example]) -> int:
    return sorted(len(e.target.split()) for e in examples)[len(examples) // 2]


def _detect_generation(examples: Sequence[Example]) -> Task | None:
    median = _median_words(examples)
    metric = METRICS["exact_match" if median <= SHORT_WORDS else "chrf"]
    return Task(GENERATION, metric, f"free-form answers, median length {median} words")


def _read_generation(target: str, answer: str) -> Readings:
    chrf = metrics.chrf(target, answer)
    return Readings(metrics.exact_match(target, answer), metrics.strict_match(target, answer), chrf=chrf)


def _instruct_generation(task: Task, train: Sequence[Chat]) -> str:
    return f"Answer directly and exactly, in about {_median_words(train)} words, without any preamble."


WRITTEN = ("exact_match", "strict_match", "cut_answers")
TEXT = TaskKind(
    name="text",
    detect=_detect_text,
    read=_no_answer,
    instruct=_no_answer,
    corpus=corpus_metrics.CORPUS_BITS,
    summary=("corpus_bits_per_byte",),
    prompted=False,
)
JSON = TaskKind(
    name="json",
    detect=_detect_json,
    read=_read_json,
    instruct=_instruct_json,
    corpus=corpus_metrics.FIELD_MICRO_F1,
    summary=("field_micro_f1", "valid_json", *WRITTEN),
)
LABEL = TaskKind(
    name="label",
    detect=_detect_label,
    read=_read_label,
    instruct=_instruct_label,
    corpus=corpus_metrics.MACRO_F1,
    summary=("macro_f1", *WRITTEN),
)
GENERATION = TaskKind(
    name="generation",
    detect=_detect_generation,
    read=_read_generation,
    instruct=_instruct_generation,
    corpus=corpus_metrics.CORPUS_CHRF,
    summary=(*WRITTEN, "corpus_chrf"),
)
KINDS = (TEXT, JSON, LABEL, GENERATION)
