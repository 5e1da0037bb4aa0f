"""Corpus metrics of two arms: a difference with an interval, or the reason for having none."""

from __future__ import annotations

from tunewright.data.metrics import METRICS
from tunewright.data.scores import Answer, LabelProbs, Score
from tunewright.data.task import LABEL, Task
from tunewright.judge import corpus


def chosen(answer: str, target: str) -> Score:
    return Score("x:1", target, Answer(answer, LabelProbs({})), float(answer == target))


def test_a_corpus_comparison_has_an_interval_or_a_reason() -> None:
    task = Task(LABEL, METRICS["accuracy"], "", ("a", "b"))
    good = [chosen(t, t) for t in "ab" * 20]
    bad = [chosen("a", t) for t in "ab" * 20]
    compared = corpus.compare(task, good, bad, list(range(40)), 0.05)
    low, high = compared["interval"]
    assert 0 < low < compared["difference"] < high
    few = corpus.compare(task, good[:5], bad[:5], list(range(5)), 0.05)
    assert few["interval"] is None
    assert "fewer than" in few["note"]
