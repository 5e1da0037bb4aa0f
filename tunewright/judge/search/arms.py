"""Arms that rank the documents of a corpus for a query: by its words, by the cosine of vectors, or by both. No torch.

Axes: Q queries, N documents, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tunewright.data.messages import Example, Prompt
from tunewright.data.scores import Answer, Retrieved
from tunewright.data.task.corpus import KEPT, Corpus
from tunewright.judge.arms import bm25
from tunewright.judge.arms.arm import Arm, Progress
from tunewright.judge.search.stored_vectors import StoredVectors

RRF = 60  # of reciprocal-rank fusion: the constant of its paper (Cormack, Clarke & Büttcher 2009, SIGIR)


def by_words(corpus: Corpus, queries: Sequence[str]) -> list[list[int]]:
    """The first documents in the order of BM25, for each query."""
    index = bm25.index(corpus.documents)
    return [index.best(query, KEPT) for query in queries]


def by_cosine(query_QD: NDArray[np.float32], document_ND: NDArray[np.float32]) -> list[list[int]]:
    """The first documents in the order of their cosines, for each query; of equal ones, the first."""
    return [np.argsort(-cosine_N, kind="stable")[:KEPT].tolist() for cosine_N in query_QD @ document_ND.T]


def fused(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """Two rankings as one: a document counts 1 / (60 + its rank) in each that it is in."""
    value: dict[int, float] = {}
    for ranking in (one, other):
        for rank, document in enumerate(ranking, 1):
            value[document] = value.get(document, 0.0) + 1 / (RRF + rank)
    return sorted(value, key=lambda document: (-value[document], document))


@dataclass(frozen=True)
class Searching:
    """``words``, ``vectors``: whether documents are ranked by BM25, and by vectors of the run's model; if by both, the
    rankings are fused."""

    corpus: Corpus
    words: bool
    vectors: bool
    # Texts are computed in the same passes whatever else is asked; a query beside others differs in its last bits only.
    deterministic: ClassVar[bool] = True
    decoding: ClassVar[str] = "greedy"

    @property
    def needs_model(self) -> bool:
        return self.vectors

    def prompt(self, example: Example) -> Prompt:
        return example.prompt

    def answer(self, examples: Sequence[Example], model: object, progress: Progress) -> list[Answer]:
        """Each answer is the text of the first document, with the first 100 as its output."""
        queries = [example.question for example in examples]
        rankings = by_words(self.corpus, queries) if self.words else []
        if self.vectors:
            assert isinstance(model, StoredVectors)
            documents = model.embed(self.corpus.documents, "document")
            near = by_cosine(model.embed(queries, "query"), documents)
            rankings = list(map(fused, rankings, near)) if self.words else near
        progress(len(examples))
        return [
            Answer(self.corpus.documents[r[0]], Retrieved(tuple(r[:KEPT])), example.prompt.messages, prompt_tokens=0)
            for example, r in zip(examples, rankings, strict=True)
        ]


def families(corpus: Corpus, started: bool, full: bool) -> dict[str, list[Arm]]:
    """BM25, the base model, the tuned one, and, unless evidence is plain, each model fused with BM25. ``started``:
    whether training continues from an adapter."""
    words, vectors, both = (Searching(corpus, *how) for how in ((True, False), (False, True), (True, True)))
    arms = [
        Arm("bm25", "BM25: by the words that query and document have in common", words),
        Arm("base", "the base model's vectors, before training", vectors),
    ]
    if full:
        arms.append(Arm("base_fusion", "BM25 and the base model's vectors, by reciprocal-rank fusion", both))
    if started:
        arms.append(
            Arm(
                "start",
                "the adapter that training continued from",
                vectors,
                uses_adapter=True,
                trained=True,
                from_start=True,
            )
        )
    if full:
        description = "BM25 and the trained model's vectors, by reciprocal-rank fusion"
        arms.append(Arm("fusion", description, both, uses_adapter=True, trained=True))
    arms.append(Arm("tuned", "the trained model's vectors", vectors, uses_adapter=True, trained=True))
    return {arm.family: [arm] for arm in arms}
