"""What a task is: the kind of answers that the rows show, and how an answer is scored.

A kind knows how it is detected, how a written answer is read, how a set of answers is summarised, and how a base model
is instructed about the form of an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np

from tunewright.data import metrics
from tunewright.data.corpus_metrics import CorpusMetric
from tunewright.data.graders.grade import Grader
from tunewright.data.messages import Chat, Example, Json, turns
from tunewright.data.metrics import METRICS, Kind, Metric
from tunewright.data.numbers import Numbers
from tunewright.data.scores import Answer, LabelProbs, Likelihood, Ranked, Readings, Retrieved, Score, Written
from tunewright.data.structure.comparison import PLAIN, Comparison, Rules
from tunewright.data.structure.schema import Schema
from tunewright.data.task.corpus import Corpus
from tunewright.data.text import exact, without_thoughts

SHOWN_CHARACTERS = 200  # of a document, as its "target" in scores/


@dataclass(frozen=True)
class Task:
    """``metric``: the metric of the verdict; ``reason``: how the kind was detected; ``labels``: empty unless it is a
    label task. ``rules`` and ``schema``: how structured answers are compared, and what they must satisfy.
    ``numbers``: the training answers, if answers are numbers; ``label_set``: all labels, if they are sets of labels or
    tags of words. ``grader`` and ``check``: of answers to rows that have none. ``corpus``: the documents that queries
    search."""

    kind: TaskKind
    metric: Metric
    reason: str
    labels: tuple[str, ...] = ()
    rules: Rules = PLAIN
    schema: Schema | None = None
    numbers: Numbers | None = None
    label_set: tuple[str, ...] = ()
    grader: Grader | None = None
    check: Grader | None = None
    corpus: Corpus | None = None

    def score(self, example: Example, answer: Answer) -> Score:
        """The score of an answer to an example, by the metric and by the additional metrics that are shown. Thoughts
        before an answer are not part of it."""
        output, target, readings = answer.output, example.target, None
        if isinstance(output, Likelihood):
            target, value = example.text[:SHOWN_CHARACTERS], metrics.bits_per_byte(output.nats, output.bytes)
        elif isinstance(output, LabelProbs):
            value = float(answer.text == target)
        elif isinstance(output, Ranked):
            value = output.correct
        elif isinstance(output, Retrieved):
            assert self.corpus is not None
            value, readings = self.corpus.measured(example, output)
        else:
            assert self.metric.score is not None, self.metric.name
            readings = self.kind.read(self, example, without_thoughts(answer.text))
            if answer.reference is not None:
                bits = metrics.bits_per_byte(answer.reference.nats, answer.reference.bytes)
                readings = replace(readings, reference_bits=bits)
            value = self.metric.score(readings)
            if output.refused:  # a grader might pay for an empty answer
                value = 0.0 if self.metric.higher_is_better else value
        return Score(where=example.where, target=target, answer=answer, score=value, readings=readings)

    def compare(self, example: Example, answer: Answer) -> Comparison:
        """The fields of a written answer and of the target, for kinds that have fields."""
        assert self.kind.compare is not None, self.kind.name
        return self.kind.compare(self, example, without_thoughts(answer.text))

    def summary(self, scores: Sequence[Score]) -> dict[str, float]:
        """The additional metrics: the corpus metric, and the means of the readings of written answers."""
        refused = [isinstance(s.answer.output, Written) and bool(s.answer.output.refused) for s in scores]
        values = {"refused_answers": float(np.mean(refused))} if any(refused) else dict[str, float]()
        for name in self.kind.summary if scores else ():
            if name == self.kind.corpus.name:
                values[name] = self.kind.corpus.of(scores, self.labels or self.label_set)
            elif name == "spearman":
                values |= self._rank_correlation(scores)
            elif isinstance(scores[0].answer.output, Written | Retrieved):
                read = [value for s in scores if (value := _READING[name](s)) is not None]
                if len(read) == len(scores):
                    values[name] = float(np.mean(read))
        return values

    def _rank_correlation(self, scores: Sequence[Score]) -> dict[str, float]:
        """Spearman's, of answers and targets; nothing where it is undefined, as for equal answers."""
        from scipy import stats

        assert self.numbers is not None
        targets = [float(s.target) for s in scores]
        given = [self.numbers.predicted(s.answer.text, t) for s, t in zip(scores, targets, strict=True)]
        if min(len(set(given)), len(set(targets))) < 2:
            return {}
        return {"spearman": float(stats.spearmanr(given, targets).statistic)}

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind.name, "metric": self.metric.name, "reason": self.reason, "labels": self.labels}


def _written(score: Score) -> tuple[Written, Readings]:
    assert isinstance(score.answer.output, Written)
    assert score.readings is not None
    return score.answer.output, score.readings


def _valid(score: Score) -> bool:
    valid = _written(score)[1].valid
    assert valid is not None
    return valid


def _recall(score: Score) -> float:
    assert score.readings is not None
    assert score.readings.hits is not None
    first, every = score.readings.hits
    return first / every


def _equal_words(target: str, answer: str) -> float:
    wanted = target.split()
    return sum(a == b for a, b in zip(wanted, answer.split(), strict=False)) / len(wanted)


# None where an answer does not have it: no schema, or no likelihoods from an endpoint.
_READING: dict[str, Callable[[Score], float | None]] = {
    **dict.fromkeys(("valid_json", "valid_yaml", "valid_xml", "valid_csv", "valid_calls"), _valid),
    "schema_valid": lambda s: _written(s)[1].schema_valid,
    "exact_match": lambda s: _written(s)[1].exact_match,
    "token_accuracy": lambda s: _equal_words(s.target, s.answer.text),
    "strict_match": lambda s: _written(s)[1].strict_match,
    "recall": _recall,
    "mrr": lambda s: s.readings.reciprocal_rank if s.readings else None,
    "reward_check": lambda s: _written(s)[1].check,
    "ungraded": lambda s: float(_written(s)[1].ungraded is not None),
    "cut_answers": lambda s: _written(s)[0].cut,
    "reference_bits": lambda s: _written(s)[1].reference_bits,
}


def nothing_is_written(*_: object) -> NoReturn:
    """What reads or asks for an answer of a kind that has none."""
    raise AssertionError("nothing is written")


def one_answer(examples: Sequence[Example]) -> bool:
    """Whether each row has one answer that is trained on."""
    return all(len(turns(e.messages)) == 1 for e in examples)


def canonical_text(example: Example) -> str:
    return exact(example.target)


@dataclass(frozen=True)
class TaskKind:
    """``detect``: the task of these rows, None if they are of another kind. ``read``: compares a written answer with
    the target of its row. ``instruct``: describes the form of an answer to a model that has not seen the rows.
    ``prompted``: whether rows have a prompt that can be answered. ``summary``: names of the additional metrics, in
    display order. ``compare``: the fields of target and answer, if answers have fields; ``value``: the target as a JSON
    value, if a JSON Schema applies to it. ``canonical``: equal for targets that say the same."""

    name: Kind
    detect: Callable[[Sequence[Example]], Task | None]
    read: Callable[[Task, Example, str], Readings]
    instruct: Callable[[Task, Sequence[Chat]], str]
    corpus: CorpusMetric
    summary: tuple[str, ...]
    prompted: bool = True
    compare: Callable[[Task, Example, str], Comparison] | None = None
    value: Callable[[Example], Json] | None = None
    canonical: Callable[[Example], str] = canonical_text

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics that the verdict can use."""
        return tuple(m for m in METRICS.values() if self.name in m.tasks)


WRITTEN = ("exact_match", "strict_match", "cut_answers")
