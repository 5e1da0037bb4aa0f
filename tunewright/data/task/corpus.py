"""A corpus: the documents that queries search, which of them are relevant to a query, and what a ranking is worth."""

from __future__ import annotations

import functools
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import log2

from tunewright.data import near_duplicates
from tunewright.data.messages import Chat, Example
from tunewright.data.scores import Readings, Retrieved
from tunewright.data.text import normalised

FIRST = 10  # documents of a ranking that count: of nDCG@10 and recall@10
KEPT = 100  # documents of a ranking that are kept


@dataclass(frozen=True)
class Corpus:
    """``documents``: of all rows, different ones only. ``relevant``: a normalised question -> the places of the
    documents that answer it."""

    documents: tuple[str, ...]
    relevant: dict[str, frozenset[int]]

    @functools.cached_property
    def sha256(self) -> str:
        relevant = [(asked, sorted(own)) for asked, own in sorted(self.relevant.items())]
        return hashlib.sha256(repr((self.documents, relevant)).encode("utf-8", "surrogatepass")).hexdigest()

    def measured(self, example: Example, retrieved: Retrieved) -> tuple[float, Readings]:
        """(nDCG@10 of a ranking with relevant documents that are all equally so, its other measures)."""
        relevant = self.relevant[normalised(example.question)]
        ranks = [rank for rank, n in enumerate(retrieved.documents, 1) if n in relevant]
        first = [rank for rank in ranks if rank <= FIRST]
        ideal = sum(1 / log2(1 + rank) for rank in range(1, min(FIRST, len(relevant)) + 1))
        gain = sum(1 / log2(1 + rank) for rank in first)
        reciprocal = 1 / ranks[0] if ranks else 0.0
        return gain / ideal, Readings(hits=(len(first), len(relevant)), reciprocal_rank=reciprocal)


def corpus_of(rows: Sequence[Example], near_duplicate: float) -> Corpus:
    """Of all documents of the rows. Relevant to a question are the documents of all rows that ask it, and near-
    duplicates of these."""
    chats = [row for row in rows if isinstance(row, Chat)]
    texts: dict[str, str] = {}
    for row in chats:
        for text in (row.target, *(row.negatives or ())):
            texts.setdefault(normalised(text), text)
    cluster = dict(zip(texts, near_duplicates.cluster(list(texts), near_duplicate).cluster, strict=True))
    members: dict[int, set[int]] = defaultdict(set)
    for n, c in enumerate(cluster.values()):
        members[c].add(n)
    relevant: dict[str, set[int]] = defaultdict(set)
    for row in chats:
        relevant[normalised(row.question)] |= members[cluster[normalised(row.target)]]
    return Corpus(tuple(texts.values()), {question: frozenset(own) for question, own in relevant.items()})
