"""Finding what is alike: BM25 over training rows or over documents (Robertson & Zaragoza 2009; the `bm25s` library).

No torch. A word is a run of letters or digits, case folded; no stop words and no stemming, so that it serves any language
that writes spaces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tunewright.data.examples import Chat, Text, normalised, question

PASSAGE = 800


def words(text: str) -> list[str]:
    return re.findall(r"\w+", normalised(text))


class Index(Protocol):
    """Texts that can be searched: by words here, by meaning in `dense`."""

    @property
    def texts(self) -> tuple[str, ...]: ...
    def best(self, query: str, count: int) -> list[int]: ...


@dataclass(frozen=True)
class BM25Index:
    """Texts in the order given, searchable by words."""

    texts: tuple[str, ...]
    bm25: Any

    def best(self, query: str, count: int) -> list[int]:
        """The ``count`` texts that share the rarest words with ``query``, best first; equal scores in the order of the texts."""
        asked = [w for w in words(query) if w in self.bm25.vocab_dict]
        scores = self.bm25.get_scores(asked) if asked else np.zeros(len(self.texts))
        return [int(i) for i in np.argsort(-np.asarray(scores), kind="stable")[:count]]


def index(texts: Sequence[str]) -> BM25Index:
    import bm25s

    bm25 = bm25s.BM25()
    bm25.index([words(t) or [""] for t in texts], show_progress=False)
    return BM25Index(tuple(texts), bm25)


@dataclass(frozen=True)
class Nearest:
    """Training rows that ask something similar."""

    rows: tuple[Chat, ...]
    index: Index

    def shots(self, example: Chat, count: int) -> tuple[Chat, ...]:
        """``count`` rows, the most similar last, where the model looks first. A row is not its own neighbour."""
        asked = question(example)
        found = [i for i in self.index.best(asked, count + 1) if self.index.texts[i] != asked][:count]
        return tuple(self.rows[i] for i in reversed(found))


def nearest(rows: Sequence[Chat], indexer: Callable[[Sequence[str]], Index] = index) -> Nearest:
    single = [r for r in rows if len(r.messages) <= 3]
    return Nearest(tuple(single), indexer([question(r) for r in single]))


def passages(documents: Sequence[Text], size: int = PASSAGE) -> list[str]:
    """Documents cut at paragraphs into passages of about ``size`` characters; a longer paragraph is cut at its sentences."""
    found: list[str] = []
    for document in documents:
        now = ""
        for paragraph in re.split(r"\n\s*\n", document.text):
            for piece in _cut(" ".join(paragraph.split()), size):
                if now and len(now) + len(piece) > size:
                    found.append(now)
                    now = ""
                now = f"{now}\n{piece}" if now else piece
        if now:
            found.append(now)
    return found


def _cut(paragraph: str, size: int) -> list[str]:
    if len(paragraph) <= size:
        return [paragraph] if paragraph else []
    pieces, now = [], ""
    for sentence in re.split(r"(?<=[.!?;])\s+", paragraph):
        for part in (sentence[i : i + size] for i in range(0, len(sentence), size)):
            if now and len(now) + len(part) > size:
                pieces.append(now)
                now = ""
            now = f"{now} {part}" if now else part
    return [*pieces, now] if now else pieces
