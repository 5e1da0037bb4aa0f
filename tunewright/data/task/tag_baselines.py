"""Baselines for tags of words, without a language model: a dictionary, and logistic regression on each word and its
neighbours."""

from __future__ import annotations

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

from tunewright.data.baselines import EACH_STRENGTH, Predict
from tunewright.data.messages import Chat
from tunewright.data.task.tags import words

NEIGHBOURS = 2  # words on either side that the regression looks at


def dictionary(train: Sequence[Chat]) -> Predict:
    """Each word's most frequent tag in the training rows, whatever its case where it was not seen as written; of other
    words, the most frequent tag of all."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    every: Counter[str] = Counter()
    for chat in train:
        for word, tag in zip(words(chat.question), words(chat.target), strict=True):
            counts[word][tag] += 1
            counts[f"\x00{word.casefold()}"][tag] += 1
            every[tag] += 1
    (common, _), *_ = every.most_common(1)
    best = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}

    def tag_of(word: str) -> str:
        return best.get(word) or best.get(f"\x00{word.casefold()}") or common

    return lambda chats: [" ".join(map(tag_of, words(chat.question))) for chat in chats]


def linear(train: Sequence[Chat]) -> Predict:
    """Logistic regression for each word by itself, on the form of the word and of its neighbours."""

    @functools.cache  # fitted on first use
    def fitted() -> Callable[[list[dict[str, float]]], Sequence[str]]:
        from sklearn.feature_extraction import DictVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        rows = [features for chat in train for features in _features(words(chat.question))]
        tags = [tag for chat in train for tag in words(chat.target)]
        regression = LogisticRegression(C=EACH_STRENGTH, max_iter=2000, solver="newton-cg")
        predict: Callable[[list[dict[str, float]]], Sequence[str]]
        predict = make_pipeline(DictVectorizer(), regression).fit(rows, tags).predict
        return predict

    def predict(chats: Sequence[Chat]) -> list[str]:
        return [" ".join(fitted()(list(_features(words(chat.question))))) for chat in chats]

    return predict


def _features(text: Sequence[str]) -> Iterator[dict[str, float]]:
    for at in range(len(text)):
        features: dict[str, float] = {"bias": 1.0, f"at {min(at, 3)}": 1.0, f"left {min(len(text) - at, 4)}": 1.0}
        for offset in range(-NEIGHBOURS, NEIGHBOURS + 1):
            place = at + offset
            word = text[place] if 0 <= place < len(text) else ""
            features[f"{offset} word {word.casefold()}"] = 1.0
            features[f"{offset} shape {_shape(word)}"] = 1.0
            if offset == 0:
                features |= {f"end {word.casefold()[-n:]}": 1.0 for n in (1, 2, 3)}
        yield features


def _shape(word: str) -> str:
    """Its kinds of characters: `Xx` for London, `d` for 12, `d-d` for 3-4."""
    kinds = re.sub(r"[^\W\d_]", lambda m: "X" if m[0].isupper() else "x", re.sub(r"\d", "d", word))
    return re.sub(r"(.)\1+", r"\1", kinds)
