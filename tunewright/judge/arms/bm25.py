"""Search by words: BM25 over training rows or documents (Robertson & Zaragoza 2009; the `bm25s` library).

No torch. A word is a run of letters or digits, case folded; no stop words and no stemming, so that it works for any
language that writes spaces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tunewright.data.examples import Chat, Example, Text, normalised

PASSAGE = 800  # characters


def words(text: str) -> list[str]:
    return re.findall(r"\w+", normalised(text))


class Index(Protocol):
    """Texts that can be searched: by words here, by meaning in `embedding_index`."""

    @property
    def texts(self) -> tuple[str, ...]: ...
    def best(self, query: str, count: int) -> list[int]: ...


@dataclass(frozen=True)
class BM25Index:
    """Texts in the given order, searchable by words."""

    texts: tuple[str, ...]
    bm25: Any

    def best(self, query: str, count: int) -> list[int]:
        """The ``count`` texts that share the rarest words with ``query``, best first; ties in the order of the
        texts."""
        known = [w for w in words(query) if w in self.bm25.vocab_dict]
        scores = self.bm25.get_scores(known) if known else np.zeros(len(self.texts))
        return [int(i) for i in np.argsort(-np.asarray(scores), kind="stable")[:count]]


def index(texts: Sequence[str]) -> BM25Index:
    import bm25s

    bm25 = bm25s.BM25()
    bm25.index([words(t) or [""] for t in texts], show_progress=False)
    return BM25Index(tuple(texts), bm25)


@dataclass(frozen=True)
class Nearest:
    """The ``count`` training rows with the most similar questions."""

    rows: tuple[Chat, ...]
    index: Index
    count: int

    def shots(self, example: Example) -> tuple[Chat, ...]:
        """The most similar comes last, where the model looks first. Rows with the very same question are left out."""
        question = example.question
        others = [i for i in self.index.best(question, self.count + 1) if self.index.texts[i] != question][: self.count]
        return tuple(self.rows[i] for i in reversed(others))


def nearest(rows: Sequence[Chat], count: int, indexer: Callable[[Sequence[str]], Index] = index) -> Nearest:
    """A search among the single-turn rows."""
    single = [r for r in rows if len(r.messages) <= 3]
    return Nearest(tuple(single), indexer([r.question for r in single]), count)


def passages(documents: Sequence[Text], size: int = PASSAGE) -> list[str]:
    """Documents cut at paragraphs into passages of about ``size`` characters; a longer paragraph is cut at its
    sentences."""
    cut: list[str] = []
    for document in documents:
        passage = ""
        for paragraph in re.split(r"\n\s*\n", document.text):
            for piece in _cut(" ".join(paragraph.split()), size):
                if passage and len(passage) + len(piece) > size:
                    cut.append(passage)
                    passage = ""
                passage = f"{passage}\n{piece}" if passage else piece
        if passage:
            cut.append(passage)
    return cut


def _cut(paragraph: str, size: int) -> list[str]:
    if len(paragraph) <= size:
        return [paragraph] if paragraph else []
    pieces, piece = [], ""
    for sentence in re.split(r"(?<=[.!?;])\s+", paragraph):
        for part in (sentence[i : i + size] for i in range(0, len(sentence), size)):
            if piece and len(piece) + len(part) > size:
                pieces.append(piece)
                piece = ""
            piece = f"{piece} {part}" if piece else part
    return [*pieces, piece] if piece else pieces
