"""Metrics of a set of rows that are functions of sums over the rows: micro-F1, macro-F1, chrF, errors, bits per byte.

Sums can be resampled fast (judge/corpus.py). No torch. Axes: R rows, k sums, L labels; "..." leading axes of resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from tunewright.data.metrics import exact_match
from tunewright.data.scores import Likelihood, Score
from tunewright.data.text import without_thoughts

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CorpusMetric:
    """``sums``: the contribution of each row, (R, k), from the scores and the task's labels; ``value``: maps sums
    (..., k) to the metric. ``by_label``: the metric averages over labels, so it needs several rows of each."""

    name: str
    sums: Callable[[Sequence[Score], Sequence[str]], Floats]
    value: Callable[[Floats], Floats]
    by_label: bool = False

    def of(self, scores: Sequence[Score], labels: Sequence[str]) -> float:
        """The metric over all of these rows."""
        return float(self.value(self.sums(scores, labels).sum(0)))


def _field_sums(scores: Sequence[Score], labels: Sequence[str]) -> Floats:
    """Right, wrong and missed fields of each row."""
    read = [s.readings.fields for s in scores if s.readings is not None and s.readings.fields is not None]
    assert len(read) == len(scores)
    return np.array([[c.right, c.wrong, c.missed] for c in read], float)


def _micro_f1(sums: Floats) -> Floats:
    right, wrong, missed = np.moveaxis(sums, -1, 0)
    return _ratio(2 * right, 2 * right + wrong + missed, empty=1.0)  # empty objects, answered with empty objects


def _likelihood_sums(scores: Sequence[Score], labels: Sequence[str]) -> Floats:
    """Nats and bytes of each document."""
    outputs = [s.answer.output for s in scores if isinstance(s.answer.output, Likelihood)]
    assert len(outputs) == len(scores)
    return np.array([[m.nats, m.bytes] for m in outputs], float)


def _bits_per_byte(sums: Floats) -> Floats:
    return np.asarray(_ratio(sums[..., 0], sums[..., 1]) / np.log(2))


def _label_sums(scores: Sequence[Score], labels: Sequence[str]) -> Floats:
    """For each row and label, whether the label is (both target and answer, the target, the answer). A written answer
    is the label that it matches exactly, as in `exact_match`."""
    at = {label: i for i, label in enumerate(labels)}
    counts_RL3 = np.zeros((len(scores), len(at), 3))
    for r, s in enumerate(scores):
        target, answer = s.target, without_thoughts(s.answer.text)
        if answer not in at:
            answer = next((label for label in (target, *labels) if exact_match(label, answer)), answer)
        for column, label in ((1, target), (2, answer)):
            if label in at:
                counts_RL3[r, at[label], column] += 1
        if target == answer and target in at:
            counts_RL3[r, at[target], 0] += 1
    return counts_RL3.reshape(len(scores), -1)


def _macro_f1(sums: Floats) -> Floats:
    """Mean F1 over the labels that occur among the targets."""
    both, targets, answers = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
    f1, occurs = _ratio(2 * both, targets + answers), targets > 0
    return _ratio((f1 * occurs).sum(-1), occurs.sum(-1).astype(float))


def _tag_sums(scores: Sequence[Score], labels: Sequence[str]) -> Floats:
    """For each row and tag, the words that have it (in both target and answer, in the target, in the answer)."""
    at = {label: i for i, label in enumerate(labels)}
    counts_RL3 = np.zeros((len(scores), len(at), 3))
    for r, s in enumerate(scores):
        for target, answer in zip_longest(s.target.split(), s.answer.text.split()[: len(s.target.split())]):
            for column, tag in ((1, target), (2, answer), (0, target if target == answer else None)):
                if tag in at:
                    counts_RL3[r, at[tag], column] += 1
    return counts_RL3.reshape(len(scores), -1)


def _reward_sums(scores: Sequence[Score], labels: Sequence[str]) -> Floats:
    return np.array([[s.score, 1.0] for s in scores], float)


def _decided_sums(scores: Sequence[Score], labels: Sequence[str]) -> Floats:
    """Whether the answers of a pair have different scores, and 1."""
    return np.array([[s.score != 0.5, 1.0] for s in scores], float)


def _hit_sums(scores: Sequence[Score], labels: Sequence[str]) -> Floats:
    """Relevant documents among the first ten, and all of them."""
    return np.array([s.readings.hits for s in scores if s.readings is not None], float)


def _ngram_sums(scores: Sequence[Score], labels: Sequence[str]) -> Floats:
    from sacrebleu.metrics.chrf import CHRF

    answers, targets = [without_thoughts(s.answer.text) for s in scores], [s.target for s in scores]
    return np.array(CHRF()._extract_corpus_statistics(answers, [targets]), float)


def _chrf(sums: Floats) -> Floats:
    """chrF2 from the sums of (answer, target, matching) n-grams of orders 1 to 6 (Popović 2015): precision and recall
    are averaged over the orders that occur on both sides, as in sacrebleu without smoothing."""
    answers, targets, both = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
    counted = (answers > 0) & (targets > 0)
    orders = counted.sum(-1).astype(float)
    precision = _ratio((_ratio(both, answers) * counted).sum(-1), orders)
    recall = _ratio((_ratio(both, targets) * counted).sum(-1), orders)
    return _ratio(5 * precision * recall, 4 * precision + recall)


def _squared_errors(scores: Sequence[Score], labels: Sequence[str]) -> Floats:
    """The squared error of each row, in standard deviations, and 1."""
    return np.array([[s.readings.error**2, 1] for s in scores if s.readings and s.readings.error is not None], float)


def _root_mean(sums: Floats) -> Floats:
    return np.sqrt(_ratio(sums[..., 0], sums[..., 1]))


def _ratio(part: Floats, total: Floats, empty: float = 0.0) -> Floats:
    """``part`` / ``total``, or ``empty`` where ``total`` is 0."""
    out = np.full(np.broadcast(part, total).shape, empty)
    return np.asarray(np.divide(part, total, out=out, where=total > 0))


FIELD_MICRO_F1 = CorpusMetric("field_micro_f1", _field_sums, _micro_f1)
MACRO_F1 = CorpusMetric("macro_f1", _label_sums, _macro_f1, by_label=True)
CORPUS_CHRF = CorpusMetric("corpus_chrf", _ngram_sums, _chrf)
ENTITY_MICRO_F1 = CorpusMetric("entity_micro_f1", _field_sums, _micro_f1)
TAG_MACRO_F1 = CorpusMetric("tag_macro_f1", _tag_sums, _macro_f1)
LABEL_MICRO_F1 = CorpusMetric("label_micro_f1", _field_sums, _micro_f1)
RMSE = CorpusMetric("rmse", _squared_errors, _root_mean)
MEAN_REWARD = CorpusMetric("mean_reward", _reward_sums, lambda sums: _ratio(sums[..., 0], sums[..., 1]))
DECIDED = CorpusMetric("decided", _decided_sums, lambda sums: _ratio(sums[..., 0], sums[..., 1]))
POOLED_RECALL = CorpusMetric("pooled_recall", _hit_sums, lambda sums: _ratio(sums[..., 0], sums[..., 1]))
CORPUS_BITS = CorpusMetric("corpus_bits_per_byte", _likelihood_sums, _bits_per_byte)
