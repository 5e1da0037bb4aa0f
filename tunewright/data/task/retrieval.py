"""Search: a query has documents that answer it, which are to be ranked before all others of the corpus."""

from __future__ import annotations

from collections.abc import Sequence

from tunewright.data import corpus_metrics
from tunewright.data.messages import Chat, Example
from tunewright.data.metrics import METRICS
from tunewright.data.scores import Readings
from tunewright.data.task.kind import Task, TaskKind
from tunewright.data.text import normalised


def _detect(examples: Sequence[Example]) -> Task | None:
    if not (isinstance(examples[0], Chat) and examples[0].negatives is not None):
        return None
    return Task(RETRIEVAL, METRICS["ndcg"], "queries, each with a document that answers it")


def _read(task: Task, example: Example, answer: str) -> Readings:
    raise AssertionError("nothing is written")


def _instruct(task: Task, train: Sequence[Chat]) -> str:
    raise AssertionError("nothing is asked for")


def _canonical(example: Example) -> str:
    """Rows with one query say the same if their documents do."""
    assert isinstance(example, Chat)
    return "\x00".join(map(normalised, (example.target, *(example.negatives or ()))))


RETRIEVAL = TaskKind(
    name="retrieval",
    detect=_detect,
    read=_read,
    instruct=_instruct,
    corpus=corpus_metrics.POOLED_RECALL,
    summary=("recall", "mrr", "pooled_recall"),
    canonical=_canonical,
)
