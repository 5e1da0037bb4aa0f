"""Arms without a language model, for closed label sets: the constant answer, and TF-IDF with logistic regression. No torch.

If either does as well, the language model was not needed.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunewright.data.examples import Chat, question

Shares = dict[str, float]
Classifier = Callable[[Sequence[Chat]], list[Shares]]
STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)
FOLDS = 5


def constant(train: Sequence[Chat], labels: Sequence[str]) -> Classifier:
    """The shares of the labels among the training rows, whatever is asked."""
    counts = Counter(e.target for e in train)
    shares = {label: counts[label] / len(train) for label in labels}
    return lambda asked: [shares] * len(asked)


def tfidf(train: Sequence[Chat], labels: Sequence[str]) -> Classifier:
    """Words and signs (1 and 2) and characters (2 to 5) weighted by TF-IDF; logistic regression, its strength by five-fold log loss."""

    @functools.cache  # fitted when it is first asked
    def fitted() -> tuple[Any, Any]:
        features, wanted = _features(), [e.target for e in train]
        x = features.fit_transform([question(e) for e in train])
        return features, _regression(_strength(x, wanted)).fit(x, wanted)

    def says(asked: Sequence[Chat]) -> list[Shares]:
        features, model = fitted()
        column = {label: i for i, label in enumerate(model.classes_)}
        p = model.predict_proba(features.transform([question(e) for e in asked]))
        return [{label: float(row[column[label]]) if label in column else 0.0 for label in labels} for row in p]

    return says


def out_of_fold(texts: Sequence[str], wanted: Sequence[str], groups: Sequence[int]) -> tuple[NDArray[np.float64], list[str]]:
    """(p_RL, labels): what the classifier says of each row when neither it nor its near-duplicates were in training."""
    from sklearn.model_selection import GroupKFold

    labels = sorted(set(wanted))
    p_RL = np.full((len(texts), len(labels)), 1 / len(labels))
    strength = _strength(_features().fit_transform(texts), wanted)
    folds = min(FOLDS, len(set(groups)))
    if folds < 2:
        return p_RL, labels
    for train, held in GroupKFold(folds, shuffle=True, random_state=0).split(np.zeros(len(texts)), groups=list(groups)):
        own = [wanted[i] for i in train]
        if len(set(own)) < 2:
            continue
        features = _features()
        model = _regression(strength).fit(features.fit_transform([texts[i] for i in train]), own)
        p_RL[held] = 0.0
        p_RL[np.ix_(held, [labels.index(c) for c in model.classes_])] = model.predict_proba(
            features.transform([texts[i] for i in held])
        )
    return p_RL, labels


def _features() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    return make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]", max_features=100_000),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, max_features=100_000),
    )


def _regression(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    # lbfgs, the default, finds the same optimum in ten times the seconds: the features are many and sparse.
    return LogisticRegression(C=strength, max_iter=2000, solver="newton-cg")


def _strength(x: Any, wanted: Sequence[str]) -> float:
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    smallest = min(Counter(wanted).values())
    if smallest < 2:
        return 3.0
    splitter = StratifiedKFold(min(FOLDS, smallest), shuffle=True, random_state=0)
    scored = {c: cross_val_score(_regression(c), x, list(wanted), cv=splitter, scoring="neg_log_loss").mean() for c in STRENGTHS}
    return max(scored, key=scored.__getitem__)
