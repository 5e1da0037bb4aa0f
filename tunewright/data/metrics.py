"""Metrics: how answers that are texts are compared, and the table of all metrics. No model, no torch.

`METRICS` has one entry per metric, with everything that the rest of the code needs to know about it. Scores are in
[0, 1], except bits per byte and errors of numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tunewright.data.scores import Readings
from tunewright.data.structure.comparison import compare
from tunewright.data.structure.values import lenient_json, strict_json
from tunewright.data.text import as_answer

Kind = Literal[
    "label",
    "json",
    "yaml",
    "xml",
    "csv",
    "tool_calls",
    "generation",
    "text",
    "number",
    "label_set",
    "rewards",
    "ranking",
    "retrieval",
    "entities",
    "tags",
]


_QUOTES = " \"'`*_.“”‘’"


def strip_wrapping(text: str) -> str:
    """A short answer without what models put around it: a box, a fence, quotes, bold, "the answer is", a full stop."""
    bare = as_answer(text)
    boxed = re.search(r"\\boxed\s*\{([^{}]*)\}", bare)
    bare = boxed[1] if boxed else re.sub(r"^```\w*|```$", "", bare).strip()
    bare = bare.strip(_QUOTES)
    return re.sub(r"^(?:the )?(?:final |correct )?answer(?: is)?\s*:?\s*", "", bare).strip(_QUOTES)


def exact_match(target: str, answer: str) -> float:
    """1.0 if equal, ignoring wrapping, case and white space; JSON: if equal as values. `strict_match` keeps the
    wrapping."""
    value = strict_json(target)
    if value is not None:
        return float(compare(value, lenient_json(answer, value)).equal)
    return float(strip_wrapping(target) == strip_wrapping(answer))


def strict_match(target: str, answer: str) -> float:
    """1.0 if equal, ignoring case and white space; JSON: if the answer is the value and nothing else."""
    value, given = strict_json(target), strict_json(answer)
    if value is not None and given is not None:
        return float(compare(value, given).equal)
    return float(as_answer(target) == as_answer(answer))


def chrf(target: str, answer: str) -> float:
    """Character n-gram F-score of one answer (Popović 2015), computed by sacrebleu, in [0, 1]."""
    from sacrebleu.metrics.chrf import CHRF

    return float(CHRF(eps_smoothing=False).sentence_score(answer, [target]).score) / 100


def read_label(answer: str, labels: Sequence[str]) -> str | None:
    """The one label that an answer names, as a whole word or phrase; None if it names none or several."""
    text = _as_words(answer)
    plain = {label: _as_words(label) for label in labels}
    named = [label for label, words in plain.items() if words in text]
    # "not spam" names "spam" too: a label inside a longer one that is named does not count.
    longest = [label for label in named if not any(label != other and plain[label] in plain[other] for other in named)]
    return longest[0] if len(longest) == 1 else None


def _as_words(text: str) -> str:
    return " " + re.sub(r"\W+", " ", as_answer(text)).strip() + " "


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """Loss of a text in bits per byte, comparable across tokenizers. ``nats``: of the whole text."""
    assert text_bytes > 0
    return nats / math.log(2) / text_bytes


@dataclass(frozen=True)
class Metric:
    """``title``: display name. ``tasks``: the tasks whose verdict can use it. ``bound``: the largest score assumed to
    be possible. ``score``: of a written answer, from what its task has read in it. ``by_label``: language models do not
    write their answer but choose the most probable label.

    Assumptions about how two arms' scores differ row by row, for planning before there are any: ``disagreement`` is the
    fraction of rows on which right/wrong scores differ; ``spread``, for other scores, is the standard deviation of the
    difference (the largest in the example reports, rounded up). Bits per byte have neither: too little is known in
    advance.
    """

    name: str
    title: str
    tasks: tuple[Kind, ...] = ()
    higher_is_better: bool = True
    bound: float = 1.0
    disagreement: float | None = None
    spread: float | None = None
    score: Callable[[Readings], float] | None = None
    by_label: bool = False


def _field_f1(readings: Readings) -> float:
    assert readings.fields is not None
    return float(readings.fields.f1)


def _chrf(readings: Readings) -> float:
    assert readings.chrf is not None
    return readings.chrf


def _exact_match(readings: Readings) -> float:
    assert readings.exact_match is not None
    return readings.exact_match


def _reward(readings: Readings) -> float:
    return readings.reward or 0.0  # an answer that cannot be graded earns nothing


def _reference_bits(readings: Readings) -> float:
    assert readings.reference_bits is not None
    return readings.reference_bits


def _error(readings: Readings) -> float:
    assert readings.error is not None
    return readings.error


STRUCTURED: tuple[Kind, ...] = ("json", "yaml", "xml", "tool_calls")
ANSWERED: tuple[Kind, ...] = ("label", "csv", "generation", *STRUCTURED)
WORDED: tuple[Kind, ...] = ("json", "yaml", "xml", "csv", "generation")
METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("accuracy", "accuracy", ("label",), disagreement=0.3, score=_exact_match, by_label=True),
        Metric("field_f1", "field F1 (mean over rows)", STRUCTURED, spread=0.4, score=_field_f1),
        Metric("label_f1", "label F1 (mean over rows)", ("label_set",), spread=0.4, score=_field_f1),
        Metric("entity_f1", "entity F1 (mean over rows)", ("entities",), spread=0.4, score=_field_f1),
        Metric("token_accuracy", "token accuracy (mean over rows)", ("tags",), spread=0.4, score=_field_f1),
        Metric("exact_match", "exact match", ANSWERED, disagreement=0.3, score=_exact_match),
        Metric("chrf", "chrF (mean over rows)", WORDED, spread=0.1, score=_chrf),
        Metric(
            "reference_bits",
            "bits per byte of the reference answer (lower is better)",
            ("generation",),
            higher_is_better=False,
            bound=16.0,
            score=_reference_bits,
        ),
        Metric("bits_per_byte", "bits per byte (lower is better)", ("text",), higher_is_better=False, bound=16.0),
        Metric(
            "absolute_error",
            "absolute error, in standard deviations of the training answers (lower is better)",
            ("number",),
            higher_is_better=False,
            bound=16.0,
            score=_error,
        ),
        Metric("reward", "mean reward", ("rewards",), spread=0.4, score=_reward),
        Metric("pair_accuracy", "pairs ranked correctly", ("ranking",), disagreement=0.3),
        Metric("ndcg", "nDCG@10 (mean over queries)", ("retrieval",), spread=0.4),
        # Never the metric of a verdict; shown in addition to it.
        Metric("strict_match", "strict exact match"),
        Metric("valid_json", "valid JSON"),
        Metric("valid_yaml", "valid YAML"),
        Metric("valid_xml", "valid XML"),
        Metric("valid_csv", "valid CSV"),
        Metric("valid_calls", "valid tool calls"),
        Metric("schema_valid", "valid by the schema"),
        Metric("reward_check", "mean of reward.check"),
        Metric("ungraded", "answers without a reward"),
        Metric("recall", "recall@10 (mean over queries)"),
        Metric("mrr", "mean reciprocal rank"),
        Metric("pooled_recall", "recall@10 (all queries together)"),
        Metric("mean_reward", "mean reward (corpus)"),
        Metric("decided", "pairs whose answers have different scores"),
        Metric("refused_answers", "answers refused by the endpoint"),
        Metric("cut_answers", "answers cut at the limit"),
        Metric("field_micro_f1", "field micro-F1"),
        Metric("label_micro_f1", "label micro-F1"),
        Metric("entity_micro_f1", "entity micro-F1"),
        Metric("tag_macro_f1", "macro-F1 of tags"),
        Metric("macro_f1", "macro-F1"),
        Metric("rmse", "root mean squared error"),
        Metric("spearman", "Spearman correlation"),
        Metric("corpus_chrf", "chrF (corpus)"),
        Metric("corpus_bits_per_byte", "bits per byte (corpus)"),
    )
}
VERDICT_METRICS = tuple(name for name, metric in METRICS.items() if metric.tasks)  # the values of prove.metric
