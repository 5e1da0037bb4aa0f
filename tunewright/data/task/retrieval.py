"""Search: a query has documents that answer it, which are to be ranked before all others of the corpus."""

from __future__ import annotations

from collections.abc import Sequence

from tunewright.data import corpus_metrics
from tunewright.data.messages import Chat, Example
from tunewright.data.metrics import METRICS
from tunewright.data.task.kind import Task, TaskKind, nothing_is_written
from tunewright.data.text import normalised


def _detect(examples: Sequence[Example]) -> Task | None:
    if not (isinstance(examples[0], Chat) and examples[0].negatives is not None):
        return None
    return Task(RETRIEVAL, METRICS["ndcg"], "queries, each with a document that answers it")


def _canonical(example: Example) -> str:
    """Rows with one query say the same if their documents do."""
    assert isinstance(example, Chat)
    return "\x00".join(map(normalised, (example.target, *(example.negatives or ()))))


RETRIEVAL = TaskKind(
    name="retrieval",
    detect=_detect,
    read=nothing_is_written,
    instruct=nothing_is_written,
    corpus=corpus_metrics.POOLED_RECALL,
    summary=("recall", "mrr", "pooled_recall"),
    canonical=_canonical,
)
