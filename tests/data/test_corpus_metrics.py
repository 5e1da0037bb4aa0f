"""Corpus metrics against the libraries that define them."""

from __future__ import annotations

import numpy as np
import pytest

from tunewright.data.corpus_metrics import CORPUS_BITS, CORPUS_CHRF, FIELD_MICRO_F1, MACRO_F1
from tunewright.data.metrics import bits_per_byte, exact_match
from tunewright.data.scores import Answer, Likelihood, Readings, Score, Written
from tunewright.data.structure.comparison import FieldCounts


def written(answer: str, target: str, fields: FieldCounts | None = None) -> Score:
    return Score("x:1", target, Answer(answer, Written(1, False)), 0.0, Readings(0.0, 0.0, fields))


def test_corpus_chrf_is_that_of_sacrebleu() -> None:
    from sacrebleu.metrics.chrf import CHRF

    answers, targets = ["the cat sat", "a dog", ""], ["the cat sat down", "a frog", "nothing here"]
    scores = [written(a, t) for a, t in zip(answers, targets, strict=True)]
    assert CORPUS_CHRF.of(scores, ()) * 100 == pytest.approx(CHRF().corpus_score(answers, [targets]).score)


def test_macro_f1_is_that_of_sklearn() -> None:
    from sklearn.metrics import f1_score

    labels = np.random.default_rng(0).choice(["a", "b", "c"], (2, 60))
    scores = [written(str(a), str(t)) for a, t in labels.T]
    assert MACRO_F1.of(scores, ("a", "b", "c")) == pytest.approx(f1_score(labels[1], labels[0], average="macro"))


def test_macro_f1_reads_written_labels_as_exact_match_does() -> None:
    """Else it would favour the arm that was trained to write nothing around a label."""
    answers = {"Spam.": "spam", "**ham**": "ham", "The answer is 1": "1", "no label": "spam"}
    scores = [written(answer, label) for answer, label in answers.items()]
    matched = sum(exact_match(label, answer) for answer, label in answers.items())
    f1 = MACRO_F1.of(scores, ("spam", "ham", "1"))
    assert (matched, f1) == (3.0, pytest.approx((2 / 3 + 1 + 1) / 3))


def test_micro_f1_adds_up_the_fields() -> None:
    scores = [written("", "", FieldCounts(2, 1, 0)), written("", "", FieldCounts(0, 0, 3))]
    assert FIELD_MICRO_F1.of(scores, ()) == pytest.approx(2 * 2 / (2 * 2 + 1 + 3))
    assert FIELD_MICRO_F1.of([written("{}", "{}", FieldCounts(0, 0, 0))], ()) == FieldCounts(0, 0, 0).f1 == 1.0


def test_corpus_bits_per_byte_weighs_rows_by_length() -> None:
    scores = [Score("x:1", "", Answer("", Likelihood(n, nats)), 0.0) for n, nats in ((10, 7.0), (30, 9.0))]
    assert CORPUS_BITS.of(scores, ()) == pytest.approx(bits_per_byte(16.0, 40))
