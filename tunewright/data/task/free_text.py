"""Answers compared as texts: labels of a closed set, free-form answers, and lines of comma-separated values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tunewright.data import corpus_metrics, metrics
from tunewright.data.messages import Chat, Example
from tunewright.data.metrics import METRICS, Metric
from tunewright.data.scores import Readings
from tunewright.data.structure import csv_lines
from tunewright.data.task.kind import WRITTEN, Task, TaskKind

# Conventions rather than measurements; `prove.metric` overrides their consequences.
MAX_LABELS = 60  # every label is scored for every row, so the cost grows with their number
ROWS_PER_LABEL = 5  # answers from a closed set repeat; free-form answers seldom do
LABEL_WORDS = 5  # a label is a word or a short phrase; a longer repeated answer is a sentence
SHORT_WORDS = 5  # so short an answer has one correct wording; a longer one has many, so it is compared by n-grams
CSV_FRACTION = 0.95


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


def _read_label(task: Task, example: Example, answer: str) -> Readings:
    target = example.target
    return Readings(metrics.exact_match(target, answer), metrics.strict_match(target, answer))


def _instruct_label(task: Task, train: Sequence[Chat]) -> str:
    return f"Answer with exactly one of these labels and nothing else: {', '.join(task.labels)}."


# -- free-form answers


def _median_words(examples: Sequence[Example]) -> int:
    return sorted(len(e.target.split()) for e in examples)[len(examples) // 2]


def text_metric(examples: Sequence[Example]) -> Metric:
    """The metric of answers that are compared as texts."""
    return METRICS["exact_match" if _median_words(examples) <= SHORT_WORDS else "chrf"]


def _detect_generation(examples: Sequence[Example]) -> Task | None:
    return Task(GENERATION, text_metric(examples), f"free-form answers, median length {_median_words(examples)} words")


def _read_generation(task: Task, example: Example, answer: str) -> Readings:
    target = example.target
    return Readings(
        metrics.exact_match(target, answer), metrics.strict_match(target, answer), chrf=metrics.chrf(target, answer)
    )


def _instruct_generation(task: Task, train: Sequence[Chat]) -> str:
    return f"Answer directly and exactly, in about {_median_words(train)} words, without any preamble."


# -- comma-separated values


def _detect_csv(examples: Sequence[Example]) -> Task | None:
    shapes = [csv_lines.shape(e.target) for e in examples]
    certain = [e for e, shape in zip(examples, shapes, strict=True) if shape is not None]
    if len(certain) < CSV_FRACTION * len(examples):
        return None
    several_lines = sum("\n" in e.target.strip() for e in certain) > len(certain) / 2
    (_, most), *_ = Counter(shapes).most_common(1)
    if not several_lines and most < CSV_FRACTION * len(examples):
        return None  # single lines are rows of a table only if they all have the same columns
    delimiters = " or ".join(sorted({repr(shape[0]) for shape in shapes if shape}))
    reason = f"{len(certain)} of {len(examples)} answers are lines of values separated by {delimiters}"
    return Task(CSV, text_metric(examples), reason)


def _read_csv(task: Task, example: Example, answer: str) -> Readings:
    target = example.target
    return Readings(
        exact_match=metrics.exact_match(target, answer),
        strict_match=metrics.strict_match(target, answer),
        chrf=metrics.chrf(target, answer),
        valid=csv_lines.is_valid(answer, target),
    )


def _instruct_csv(task: Task, train: Sequence[Chat]) -> str:
    shapes = Counter(shape for e in train if (shape := csv_lines.shape(e.target)))
    ((delimiter, columns), _), *_ = shapes.most_common(1)
    return f"Answer with lines of {columns} values separated by {delimiter!r}, and nothing else."


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
    summary=("reference_bits", *WRITTEN, "corpus_chrf"),
)
CSV = TaskKind(
    name="csv",
    detect=_detect_csv,
    read=_read_csv,
    instruct=_instruct_csv,
    corpus=corpus_metrics.CORPUS_CHRF,
    summary=("valid_csv", *WRITTEN, "corpus_chrf"),
)
