"""Traits of a text that a reader notices before the content: length, lists, names, how it begins and ends. No torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

LOOP_WORDS, LOOP_TIMES = 8, 3  # an answer loops if it has a run of so many words so often
_LIST_LINE = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)
_END = (".", "!", "?", ":", ")", "”", '"', "`", "*")


def words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’]\w+)*", text.lower())


def _sentences(text: str) -> list[str]:
    return [s for s in re.split(r"(?<=[.!?])\s+|\n+", text.strip()) if s]


def _names(text: str) -> float:
    """Capitalised words that do not begin a sentence."""
    return float(sum(len(re.findall(r"\b[A-Z]\w+", s.partition(" ")[2])) for s in _sentences(text)))


def _per_100_words(count: Callable[[str], float]) -> Callable[[str], float]:
    return lambda text: 100 * count(text) / max(1, len(words(text)))


def _of(*chosen: str) -> Callable[[str], float]:
    return lambda text: float(sum(w in chosen for w in words(text)))


def repeated(text: str) -> float:
    """The fraction of runs of four words that occurred before in the text."""
    w = words(text)
    runs = [tuple(w[i : i + 4]) for i in range(len(w) - 3)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


TRAITS: dict[str, Callable[[str], float]] = {
    "words": lambda text: float(len(words(text))),
    "words per sentence": lambda text: len(words(text)) / max(1, len(_sentences(text))),
    "lines": lambda text: float(len([line for line in text.splitlines() if line.strip()])),
    "lines of a list": lambda text: float(len(_LIST_LINE.findall(text))),
    "names per 100 words": _per_100_words(_names),
    "digits per 100 words": _per_100_words(lambda text: float(sum(c.isdigit() for c in text))),
    "quotes and brackets per 100 words": _per_100_words(lambda text: float(len(re.findall(r"[\"“”()\[\]`]", text)))),
    "questions": lambda text: float(text.count("?")),
    "exclamation marks": lambda text: float(text.count("!")),
    "I and we per 100 words": _per_100_words(_of("i", "we", "my", "our", "i'm", "we're", "i'll", "we'll")),
    "you per 100 words": _per_100_words(_of("you", "your", "you're", "you'll")),
    "ends as a sentence does": lambda text: float(text.rstrip().endswith(_END)),
    "repeated runs of four words": repeated,
}


def loops(text: str) -> bool:
    """Whether a run of eight words occurs three times or more."""
    w = words(text)
    counts = Counter(tuple(w[i : i + LOOP_WORDS]) for i in range(len(w) - LOOP_WORDS + 1))
    return bool(counts) and max(counts.values()) >= LOOP_TIMES


def openings(texts: Sequence[str]) -> Counter[str]:
    """How often texts begin with each first word, and with each first two words."""
    counts: Counter[str] = Counter()
    for text in texts:
        first = words(text)[:2]
        counts.update({" ".join(first[:1]), " ".join(first)} - {""})
    return counts
