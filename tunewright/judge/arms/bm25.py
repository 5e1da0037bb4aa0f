"""Lexical search: BM25 over training rows or documents (Robertson & Zaragoza 2009; the `bm25s` library).

No torch. A word is a run of letters or digits, case-folded; no stop words and no stemming, so it works for any
language that separates words by spaces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tunewright.data.messages import Chat, Example, Text
from tunewright.data.text import normalised

PASSAGE = 800  # characters


def words(text: str) -> list[str]:
    return re.findall(r"\w+", normalised(text))


class Index(Protocol):
    """Searchable texts: by words here, by meaning in `embedding_index`."""

    @property
    def texts(self) -> tuple[str, ...]: ...
    def best(self, query: str, count: int) -> list[int]: ...


@dataclass(frozen=True)
class BM25Index:
    """Texts in the given order, with their BM25 index."""

    texts: tuple[str, ...]
    bm25: Any

    def best(self, query: str, count: int) -> list[int]:
        """The ``count`` best matches for ``query``, best first; ties in the order of the texts."""
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
    """Finds the ``count`` training rows with the most similar questions."""

    rows: tuple[Chat, ...]
    index: Index
    count: int

    def shots(self, example: Example) -> tuple[Chat, ...]:
        """The most similar row comes last, next to the question. Rows with an identical question are left out."""
        question = example.question
        others = [i for i in self.index.best(question, self.count + 1) if self.index.texts[i] != question][: self.count]
        return tuple(self.rows[i] for i in reversed(others))


def single_turn(row: Chat) -> bool:
    """Whether a row can be shown as an example: one question, one answer."""
    return len(row.messages) <= 3


def nearest(rows: Sequence[Chat], count: int, indexer: Callable[[Sequence[str]], Index] = index) -> Nearest:
    """Search among the single-turn rows."""
    single = [r for r in rows if single_turn(r)]
    return Nearest(tuple(single), indexer([r.question for r in single]), count)


def passages(documents: Sequence[Text], size: int = PASSAGE) -> list[str]:
    """Documents split at paragraphs into passages of about ``size`` characters; longer paragraphs are split at
    sentences."""
    result: list[str] = []
    for document in documents:
        passage = ""
        for paragraph in re.split(r"\n\s*\n", document.text):
            for piece in _split(" ".join(paragraph.split()), size):
                if passage and len(passage) + len(piece) > size:
                    result.append(passage)
                    passage = ""
                passage = f"{passage}\n{piece}" if passage else piece
        if passage:
            result.append(passage)
    return result


def _split(paragraph: str, size: int) -> list[str]:
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
