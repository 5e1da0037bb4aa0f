"""Graders that compare two texts: OpenAI's string_check and text_similarity."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from tunewright.data import metrics
from tunewright.data.graders.grade import Item, Output, Template
from tunewright.data.structure.schema import Schema
from tunewright.data.structure.values import strict_json

OPERATIONS: dict[str, Callable[[str, str], bool]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}


def _common(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """The length of the longest common subsequence, by the bits of one number (Hyyrö 2004)."""
    places: dict[Hashable, int] = {}
    for place, symbol in enumerate(a):
        places[symbol] = places.get(symbol, 0) | 1 << place
    every = (1 << len(a)) - 1
    open_places = every
    for symbol in b:
        here = open_places & places.get(symbol, 0)
        open_places = ((open_places + here) | (open_places - here)) & every
    return len(a) - open_places.bit_count()


def _similar(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """2 * common subsequence / both lengths: of characters, rapidfuzz's `fuzz.ratio`; of words, the F1 of ROUGE-L."""
    return 2 * _common(a, b) / (len(a) + len(b)) if a or b else 1.0


def _words(text: str) -> list[str]:
    """As the package rouge-score has them, without its stemmer."""
    return re.findall(r"[a-z0-9]+", text.lower())


def _rouge_l(text: str, reference: str) -> float:
    """As that package has it, 0 where one of them has no such words: two texts in another script have nothing in
    common by it."""
    words, others = _words(text), _words(reference)
    return _similar(words, others) if words and others else 0.0


def _bleu(text: str, reference: str) -> float:
    from sacrebleu import sentence_bleu

    return min(1.0, float(sentence_bleu(text, [reference]).score) / 100)


SIMILARITIES: dict[str, Callable[[str, str], float]] = {
    "fuzzy_match": lambda text, reference: _similar(text, reference),
    "bleu": _bleu,
    "rouge_l": _rouge_l,
}
# Our own metrics that need nothing but two texts: (reference, answer).
OWN: dict[str, Callable[[str, str], float]] = {
    "exact_match": metrics.exact_match,
    "strict_match": metrics.strict_match,
    "chrf": metrics.chrf,
}


@dataclass(frozen=True)
class Compared:
    """``kind``: a name in `OPERATIONS`, `SIMILARITIES` or `OWN`. An answer that lacks what ``input`` reads earns 0."""

    kind: str
    input: Template
    reference: Template

    @property
    def fields(self) -> frozenset[str]:
        return self.input.fields | self.reference.fields

    def grade(self, item: Item, output: Output) -> float:
        text, reference = self.input.filled(item, output), self.reference.filled(item, output)
        if text is None or reference is None:
            return 0.0
        if self.kind in OWN:
            return OWN[self.kind](reference, text)
        return float({**OPERATIONS, **SIMILARITIES}[self.kind](text, reference))


@dataclass(frozen=True)
class SchemaValid:
    """1 if the answer is a JSON object or array, and nothing else, that satisfies a JSON Schema; else 0."""

    schema: Schema
    fields: frozenset[str] = frozenset()

    def grade(self, item: Item, output: Output) -> float:
        value = strict_json(output.text)
        return float(value is not None and self.schema.accepts(value))
