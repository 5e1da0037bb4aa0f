"""(example, answer) -> score in [0, 1] (bits per byte excepted). No model, no torch; a reward is a metric.

Also: what kind of task a data set is, because the metric follows from it.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunewright.data.examples import Chat, Example, Text, normalised

Kind = Literal["label", "json", "generation", "text"]
MAX_LABELS = 60


@dataclass(frozen=True)
class Task:
    """``metric`` is what the verdict is about; ``reason`` says how the kind was told."""

    kind: Kind
    metric: str
    reason: str
    labels: tuple[str, ...] = ()


def detect_task(examples: Sequence[Example]) -> Task:
    """Labels: few different short answers, each repeated. JSON: (nearly) all answers are objects. Text: raw documents."""
    if isinstance(examples[0], Text):
        return Task("text", "bits_per_byte", "raw text: how many bits the model needs for a byte of held-out documents")
    targets = [e.target for e in examples if isinstance(e, Chat)]
    objects = sum(strict_object(t) is not None for t in targets)
    if objects >= 0.95 * len(targets):
        return Task("json", "field_f1", f"{objects} of {len(targets)} answers are JSON objects")
    counts = Counter(targets)
    words = max(len(t.split()) for t in targets)
    single = all(len(e.messages) <= 3 for e in examples if isinstance(e, Chat))
    if single and len(counts) <= min(MAX_LABELS, max(2, len(targets) // 5)) and words <= 5:
        return Task("label", "accuracy", f"{len(counts)} different short answers in {len(targets)} rows", tuple(sorted(counts)))
    median = sorted(len(t.split()) for t in targets)[len(targets) // 2]
    if median <= 5:
        return Task("generation", "exact_match", f"free answers of {median} words (median)")
    return Task("generation", "chrf", f"free answers of {median} words (median)")


HIGHER_IS_BETTER = {"accuracy": True, "exact_match": True, "field_f1": True, "chrf": True, "bits_per_byte": False}
METRICS_OF: dict[Kind, tuple[str, ...]] = {
    "label": ("accuracy", "exact_match"),
    "json": ("field_f1", "exact_match", "chrf"),
    "generation": ("exact_match", "chrf"),
    "text": ("bits_per_byte",),
}


def strict_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def lenient_object(text: str) -> dict[str, Any] | None:
    """The first JSON object in the text: a fence or a sentence around a right answer does not make it wrong."""
    found = strict_object(text)
    decoder = json.JSONDecoder()
    for match in re.finditer(r"\{", text):
        if found is not None:
            break
        try:
            value, _ = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        found = value if isinstance(value, dict) else None
    return found


def fields_of(value: Any, prefix: str = "") -> Counter[tuple[str, str]]:
    """Leaves as (path, normalised text), lists as bags: their order is not compared."""
    if isinstance(value, dict):
        return sum((fields_of(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in value.items()), Counter())
    if isinstance(value, list):
        return sum((fields_of(v, f"{prefix}[]") for v in value), Counter())
    return Counter({(prefix, normalised(value if isinstance(value, str) else json.dumps(value))): 1})


@dataclass(frozen=True)
class FieldCounts:
    """Right, invented and missed fields of one answer; ``valid`` under the strict reading (the answer is JSON, nothing else)."""

    right: int
    wrong: int
    missed: int
    valid: bool

    @property
    def f1(self) -> float:
        total = 2 * self.right + self.wrong + self.missed
        return 2 * self.right / total if total else 1.0


def field_counts(target: str, answer: str) -> FieldCounts:
    gold = fields_of(lenient_object(target) or {})
    found = lenient_object(answer)
    if found is None:
        return FieldCounts(0, 0, gold.total(), False)
    given = fields_of(found)
    right = (gold & given).total()
    return FieldCounts(right, given.total() - right, gold.total() - right, strict_object(answer) is not None)


def micro_f1(counts: Sequence[FieldCounts]) -> float:
    return FieldCounts(sum(c.right for c in counts), sum(c.wrong for c in counts), sum(c.missed for c in counts), True).f1


def strip_wrapping(text: str) -> str:
    """A short answer without what models put around it: a box, a fence, quotes, bold, "the answer is", a final stop."""
    said = normalised(text)
    boxed = re.search(r"\\boxed\s*\{([^{}]*)\}", said)
    said = boxed[1] if boxed else re.sub(r"^```\w*|```$", "", said).strip()
    said = said.strip(_AROUND)
    return re.sub(r"^(?:the )?(?:final |correct )?answer(?: is)?\s*:?\s*", "", said).strip(_AROUND)


_AROUND = " \"'`*_.“”‘’"


def exact_match(target: str, answer: str) -> float:
    """Equal once bare, case and white space folded; for JSON, equal as objects. `strict_match` is the unforgiving reading."""
    a, b = strict_object(target), lenient_object(answer)
    if a is not None:
        return float(b is not None and fields_of(a) == fields_of(b))
    return float(strip_wrapping(target) == strip_wrapping(answer))


def strict_match(target: str, answer: str) -> float:
    """Equal but for case and white space; for JSON, the answer is the object and nothing else."""
    a, b = strict_object(target), strict_object(answer)
    if a is not None and b is not None:
        return float(fields_of(a) == fields_of(b))
    return float(normalised(target) == normalised(answer))


def chrf(target: str, answer: str) -> float:
    """Character n-gram F-score of one answer (Popović 2015), sacrebleu's, in [0, 1]."""
    from sacrebleu.metrics.chrf import CHRF

    return float(CHRF(eps_smoothing=False).sentence_score(answer, [target]).score) / 100


def read_label(answer: str, labels: Sequence[str]) -> str | None:
    """The one label that an answer names, as a whole word or phrase; None where it names none or several."""
    said = _worded(answer)
    plain = {label: _worded(label) for label in labels}
    found = [label for label, words in plain.items() if words in said]
    # "not spam" names "spam" too: a label inside a longer one that is named does not count.
    whole = [label for label in found if not any(label != other and plain[label] in plain[other] for other in found)]
    return whole[0] if len(whole) == 1 else None


def _worded(text: str) -> str:
    return " " + re.sub(r"\W+", " ", normalised(text)).strip() + " "


def macro_f1(targets: Sequence[str], answers: Sequence[str]) -> float:
    """Mean over the labels that occur among the targets of the F1 of each."""
    found = []
    for label in sorted(set(targets)):
        right = sum(t == a == label for t, a in zip(targets, answers, strict=True))
        total = sum(t == label for t in targets) + sum(a == label for a in answers)
        found.append(2 * right / total)
    return sum(found) / len(found) if found else 0.0


def score_answer(metric: str, target: str, answer: str) -> float:
    """The score of a written answer under a metric that reads answers."""
    if metric == "field_f1":
        return field_counts(target, answer).f1
    if metric == "chrf":
        return chrf(target, answer)
    assert metric in ("exact_match", "accuracy"), metric
    return exact_match(target, answer)


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """Independent of the tokenizer: nats of the whole text over its UTF-8 bytes."""
    assert text_bytes > 0
    return nats / math.log(2) / text_bytes
