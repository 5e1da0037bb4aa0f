"""(target, answer) -> score in [0, 1], except bits per byte. No model, no torch; a reward is a metric.

`METRICS` has one entry per metric, with everything that the rest of the code needs to know about it.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunewright.data.examples import normalised

Kind = Literal["label", "json", "generation", "text"]


def strict_object(text: str) -> dict[str, Any] | None:
    """``text`` as a JSON object; None if it is anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def lenient_object(text: str) -> dict[str, Any] | None:
    """The first JSON object in the text: a fence or a sentence around a correct answer does not make it wrong."""
    parsed = strict_object(text)
    decoder = json.JSONDecoder()
    for match in re.finditer(r"\{", text):
        if parsed is not None:
            break
        try:
            value, _ = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        parsed = value if isinstance(value, dict) else None
    return parsed


def fields_of(value: Any, prefix: str = "") -> Counter[tuple[str, str]]:
    """The leaves as (path, normalised text), counted. Lists are multisets: their order is ignored."""
    if isinstance(value, dict):
        return sum((fields_of(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in value.items()), Counter())
    if isinstance(value, list):
        return sum((fields_of(v, f"{prefix}[]") for v in value), Counter())
    return Counter({(prefix, normalised(value if isinstance(value, str) else json.dumps(value))): 1})


@dataclass(frozen=True)
class FieldComparison:
    """Numbers of right, wrong (spurious) and missed fields of an answer. ``valid``: the answer is a single JSON object
    and nothing else."""

    right: int
    wrong: int
    missed: int
    valid: bool

    @property
    def f1(self) -> float:
        total = 2 * self.right + self.wrong + self.missed
        return 2 * self.right / total if total else 1.0


def compare_fields(target: str, answer: str) -> FieldComparison:
    """Compares the fields of the first JSON object in the answer with those of the target."""
    expected = fields_of(lenient_object(target) or {})
    value = lenient_object(answer)
    if value is None:
        return FieldComparison(right=0, wrong=0, missed=expected.total(), valid=False)
    given = fields_of(value)
    right = (expected & given).total()
    valid = strict_object(answer) is not None
    return FieldComparison(right=right, wrong=given.total() - right, missed=expected.total() - right, valid=valid)


def field_f1(target: str, answer: str) -> float:
    return compare_fields(target, answer).f1


_QUOTES = " \"'`*_.“”‘’"


def strip_wrapping(text: str) -> str:
    """A short answer without what models put around it: a box, a fence, quotes, bold, "the answer is", a full stop."""
    bare = normalised(text)
    boxed = re.search(r"\\boxed\s*\{([^{}]*)\}", bare)
    bare = boxed[1] if boxed else re.sub(r"^```\w*|```$", "", bare).strip()
    bare = bare.strip(_QUOTES)
    return re.sub(r"^(?:the )?(?:final |correct )?answer(?: is)?\s*:?\s*", "", bare).strip(_QUOTES)


def exact_match(target: str, answer: str) -> float:
    """1.0 if equal, ignoring wrapping, case and white space; JSON: if equal as objects. `strict_match` keeps the
    wrapping."""
    a, b = strict_object(target), lenient_object(answer)
    if a is not None:
        return float(b is not None and fields_of(a) == fields_of(b))
    return float(strip_wrapping(target) == strip_wrapping(answer))


def strict_match(target: str, answer: str) -> float:
    """1.0 if equal, ignoring case and white space; JSON: if the answer is the object and nothing else."""
    a, b = strict_object(target), strict_object(answer)
    if a is not None and b is not None:
        return float(fields_of(a) == fields_of(b))
    return float(normalised(target) == normalised(answer))


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
    return " " + re.sub(r"\W+", " ", normalised(text)).strip() + " "


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """Loss of a text in bits per byte, comparable across tokenizers. ``nats``: of the whole text."""
    assert text_bytes > 0
    return nats / math.log(2) / text_bytes


@dataclass(frozen=True)
class Metric:
    """``title``: display name. ``tasks``: the tasks whose verdict can use it. ``bound``: the largest score assumed to
    be possible. ``score``: scores a written answer, from (target, answer). ``by_label``: language models do not write
    their answer but choose the most probable label.

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
    score: Callable[[str, str], float] | None = None
    by_label: bool = False


ANSWERED: tuple[Kind, ...] = ("label", "json", "generation")
METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("accuracy", "accuracy", ("label",), disagreement=0.3, score=exact_match, by_label=True),
        Metric("field_f1", "field F1 (mean over rows)", ("json",), spread=0.4, score=field_f1),
        Metric("exact_match", "exact match", ANSWERED, disagreement=0.3, score=exact_match),
        Metric("chrf", "chrF (mean over rows)", ("json", "generation"), spread=0.1, score=chrf),
        Metric("bits_per_byte", "bits per byte (lower is better)", ("text",), higher_is_better=False, bound=16.0),
        # Never the metric of a verdict; shown in addition to it.
        Metric("strict_match", "strict exact match", score=strict_match),
        Metric("valid_json", "valid JSON"),
        Metric("cut_answers", "answers cut at the limit"),
        Metric("field_micro_f1", "field micro-F1"),
        Metric("macro_f1", "macro-F1"),
        Metric("corpus_chrf", "chrF (corpus)"),
        Metric("corpus_bits_per_byte", "bits per byte (corpus)"),
    )
}
VERDICT_METRICS = tuple(name for name, metric in METRICS.items() if metric.tasks)  # the values of prove.metric
