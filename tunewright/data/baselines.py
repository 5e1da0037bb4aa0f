"""Baselines without a language model: a constant answer, and TF-IDF with logistic regression for labels and sets of
labels, with ridge regression for numbers.

If either does as well, the language model was not needed. No torch. Axes: R rows, L labels.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunewright.data.messages import Chat

Probs = dict[str, float]
PredictProbs = Callable[[Sequence[Chat]], list[Probs]]
Predict = Callable[[Sequence[Chat]], list[str]]
Read = Callable[[str], Sequence[str]]
Join = Callable[[Sequence[str]], str]
Fitted = tuple[Any, Any]  # features and model
STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)
EACH_STRENGTH = 3.0  # where it is not chosen by cross-validation
FOLDS = 5
MOST_TUNED = 10_000  # rows on which the strength is chosen


def constant(train: Sequence[Chat], labels: Sequence[str]) -> PredictProbs:
    """Predicts the label frequencies of the training rows for every question."""
    counts = Counter(e.target for e in train)
    probs = {label: counts[label] / len(train) for label in labels}
    return lambda chats: [probs] * len(chats)


def tfidf(train: Sequence[Chat], labels: Sequence[str]) -> PredictProbs:
    """Logistic regression on TF-IDF weights of words and punctuation (1- and 2-grams) and of characters (2- to
    5-grams); the regularisation minimises five-fold log loss."""

    @functools.cache  # fitted on first use
    def fitted() -> Fitted:
        features, targets = _features(), [e.target for e in train]
        x = features.fit_transform([e.question for e in train])
        return features, _regression(_strength(x, targets)).fit(x, targets)

    def predict(chats: Sequence[Chat]) -> list[Probs]:
        features, model = fitted()
        column = {label: i for i, label in enumerate(model.classes_)}
        p_RL = model.predict_proba(features.transform([e.question for e in chats]))
        return [{label: float(row[column[label]]) if label in column else 0.0 for label in labels} for row in p_RL]

    return predict


def median(train: Sequence[Chat]) -> Predict:
    """The median of the training answers, the constant with the smallest absolute error."""
    value = f"{np.median([float(e.target) for e in train]):.6g}"
    return lambda chats: [value] * len(chats)


def ridge(train: Sequence[Chat]) -> Predict:
    """Ridge regression on the features of `tfidf`; the regularisation minimises the leave-one-out squared error."""

    @functools.cache  # fitted on first use
    def fitted() -> Fitted:
        from sklearn.linear_model import RidgeCV

        features, targets = _features(), [float(e.target) for e in train]
        x = features.fit_transform([e.question for e in train])
        return features, RidgeCV([1 / c for c in STRENGTHS]).fit(x, targets)

    def predict(chats: Sequence[Chat]) -> list[str]:
        features, model = fitted()
        return [f"{v:.10g}" for v in model.predict(features.transform([e.question for e in chats]))]

    return predict


def most_frequent(train: Sequence[Chat]) -> Predict:
    """The most frequent training answer."""
    ((answer, _),) = Counter(e.target for e in train).most_common(1)
    return lambda chats: [answer] * len(chats)


def each_label(train: Sequence[Chat], labels: Sequence[str], read: Read, join: Join) -> Predict:
    """A classifier as in `tfidf` for each label: those that are more probable than not. ``read``, ``join``: an answer
    as labels, and back."""

    @functools.cache  # fitted on first use
    def fitted() -> Fitted:
        features, sets = _features(), [set(read(e.target)) for e in train]
        x, models = features.fit_transform([e.question for e in train]), {}
        for label in labels:
            has = [label in own for own in sets]
            models[label] = _regression(EACH_STRENGTH).fit(x, has) if len(set(has)) > 1 else None
        return features, models

    def predict(chats: Sequence[Chat]) -> list[str]:
        features, models = fitted()
        x = features.transform([e.question for e in chats])
        chosen = {label: model.predict(x) for label, model in models.items() if model is not None}
        return [join([label for label in labels if label in chosen and chosen[label][r]]) for r in range(len(chats))]

    return predict


def pair_scores(chosen: Sequence[str], rejected: Sequence[str]) -> Callable[[Sequence[str]], list[float]]:
    """Scores of texts: logistic regression on the differences of the features of `tfidf` of two texts; the
    regularisation minimises five-fold log loss."""

    @functools.cache  # fitted on first use
    def fitted() -> Fitted:
        features = _features().fit([*chosen, *rejected])
        x = features.transform(chosen) - features.transform(rejected)
        # Both classes are needed, so every other pair is turned round. The second class is that of a higher score.
        signs = np.resize([1.0, -1.0], x.shape[0])
        x, targets = x.multiply(signs[:, None]).tocsr(), ["2nd" if s > 0 else "1st" for s in signs]
        return features, _regression(_strength(x, targets)).fit(x, targets)

    def score(texts: Sequence[str]) -> list[float]:
        features, model = fitted()
        return [float(value) for value in features.transform(texts) @ model.coef_[0]]

    return score


def out_of_fold(
    texts: Sequence[str], targets: Sequence[str], groups: Sequence[int]
) -> tuple[NDArray[np.float64], list[str]]:
    """(p_RL, labels): the classifier's prediction for each row, when trained without the rows of its group."""
    from sklearn.model_selection import GroupKFold

    labels = sorted(set(targets))
    p_RL = np.full((len(texts), len(labels)), 1 / len(labels))
    strength = _strength(_features().fit_transform(texts), targets)
    folds = min(FOLDS, len(set(groups)))
    if folds < 2:
        return p_RL, labels
    for train, held_out in GroupKFold(folds, shuffle=True, random_state=0).split(
        np.zeros(len(texts)), groups=list(groups)
    ):
        train_targets = [targets[i] for i in train]
        if len(set(train_targets)) < 2:
            continue
        features = _features()
        model = _regression(strength).fit(features.fit_transform([texts[i] for i in train]), train_targets)
        p_RL[held_out] = 0.0
        p_RL[np.ix_(held_out, [labels.index(c) for c in model.classes_])] = model.predict_proba(
            features.transform([texts[i] for i in held_out])
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

    # The features are many and sparse: lbfgs, the default, needs ten times as long for the same optimum.
    return LogisticRegression(C=strength, max_iter=2000, solver="newton-cg")


def _strength(x: Any, targets: Sequence[str]) -> float:
    """The inverse regularisation strength with the lowest cross-validated log loss; 3 if a label has only one row."""
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    smallest = min(Counter(targets).values())
    if smallest < 2:
        return 3.0
    if len(targets) > MOST_TUNED:
        some = np.random.default_rng(0).permutation(len(targets))[:MOST_TUNED]
        return _strength(x[some], [targets[i] for i in some])
    splitter = StratifiedKFold(min(FOLDS, smallest), shuffle=True, random_state=0)
    scores = {
        c: cross_val_score(_regression(c), x, list(targets), cv=splitter, scoring="neg_log_loss").mean()
        for c in STRENGTHS
    }
    return max(scores, key=scores.__getitem__)
