"""How well a classifier distinguishes an arm's answers from the reference answers to the same questions. No torch.

The classifier (logistic regression on character n-grams and traits, and an encoder's vectors where one is given) is
cross-fitted: it never sees the questions whose answers it judges. Its area under the ROC curve (AUC) is the probability
that it scores a reference answer higher than an arm's answer: 0.5 if it cannot distinguish them. The interval follows
from the influence of each question on the AUC (LeDell, Petersen & van der Laan 2015, Electron. J. Stat. 9:1583), with
one pseudo-question for and one against, and is widened because a question is in the training data of the other folds'
classifiers, so that the folds' AUCs are not independent (Nadeau & Bengio 2003, Mach. Learn. 52:239).

Axes: N texts, R questions, D width of the encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunewright.core.records.common import Interval
from tunewright.judge.statistics import clustered_interval
from tunewright.judge.voice.traits import TRAITS, openings

if TYPE_CHECKING:
    from sklearn.pipeline import FeatureUnion

MIN_ROWS = 20  # questions
FOLDS = 5
STRENGTH = 10.0  # inverse regularisation
MOST_TRAITS = 5  # shown
Floats = NDArray[np.float64]
Encode = Callable[[Sequence[str]], ArrayLike]


@dataclass(frozen=True)
class Auc:
    """An area under the ROC curve, with its interval."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Trait:
    """A trait that gives an arm away: its mean in the reference answers and in the arm's, and the AUC of this trait
    alone, 0.5 or more."""

    name: str
    reference: float
    arm: float
    auc: float


def classifier(
    reference: Sequence[str], others: Sequence[str], encode: Encode | None = None
) -> Callable[[Sequence[str]], Floats]:
    """texts -> for each, the log-odds that it belongs to the reference and not to the others."""
    from sklearn.linear_model import LogisticRegression

    made = _features(encode)
    model = LogisticRegression(C=STRENGTH, max_iter=2000, solver="newton-cg")
    belongs_N = np.repeat([1, 0], [len(reference), len(others)])
    model.fit(made.fit_transform([*reference, *others]), belongs_N)
    return lambda texts: np.asarray(model.decision_function(made.transform(texts)), float)


def separability(
    reference: Sequence[str],
    arm: Sequence[str],
    clusters: Sequence[int],
    alpha: float,
    encode: Encode | None = None,
) -> Auc | None:
    """The AUC of answers to the same questions; None for fewer than `MIN_ROWS` questions, or fewer clusters than
    folds. ``encode``: vector_ND of texts; it is asked in every fold."""
    if len(reference) < MIN_ROWS or len(set(clusters)) < FOLDS:
        return None
    from sklearn.model_selection import GroupKFold

    folds = GroupKFold(FOLDS, shuffle=True, random_state=0).split(np.zeros(len(reference)), groups=list(clusters))
    reference_R, arm_R, fold_R = np.zeros(len(reference)), np.zeros(len(reference)), np.zeros(len(reference), int)
    for number, (train, held_out) in enumerate(folds):
        log_odds = classifier([reference[i] for i in train], [arm[i] for i in train], encode)
        for texts, into in ((reference, reference_R), (arm, arm_R)):
            into[held_out] = log_odds([texts[i] for i in held_out])
        fold_R[held_out] = number
    # Of K folds, the variance of the mean is taken as (1/K + 1/(K-1)) times that of one, and not 1/K times: a
    # heuristic, whose coverage the tests simulate.
    return auc(reference_R, arm_R, fold_R, clusters, alpha, wider=(1 + FOLDS / (FOLDS - 1)) ** 0.5)


def auc(
    reference_R: ArrayLike,
    arm_R: ArrayLike,
    fold_R: ArrayLike,
    clusters: Sequence[int],
    alpha: float,
    wider: float = 1.0,
) -> Auc:
    """The probability that a reference answer has the higher score, within folds, as ties are half. Each question
    contributes how often its two answers are on the right side of the other questions' answers. ``wider``: factor of
    the interval."""
    h, a, folds = np.asarray(reference_R, float), np.asarray(arm_R, float), np.asarray(fold_R)
    placed = np.zeros(len(h))
    for fold in np.unique(folds):
        part = folds == fold
        wins = (h[part, None] > a[None, part]) + 0.5 * (h[part, None] == a[None, part])
        placed[part] = wins.mean(1) + wins.mean(0) - 1
    # A question takes part with two answers: the mean of ``placed`` is 2 AUC - 1, but its standard error is the AUC's.
    low, high, _ = clustered_interval(placed, clusters, alpha, bound=2.0)
    middle, half = 0.5 + (low + high) / 4, wider * (high - low) / 2
    ends = (float(np.clip(x, 0.0, 1.0)) for x in (middle - half, middle + half))
    return Auc(float(0.5 + placed.mean() / 2), Interval(*ends))


def traits(reference: Sequence[str], arm: Sequence[str], clusters: Sequence[int], alpha: float) -> tuple[Trait, ...]:
    """The traits that are shown to give the arm away, the strongest first, and the openings that one of the two uses
    more often. ``alpha``: of all traits together, and of all openings (Bonferroni)."""
    counted, kinds = [openings([text]) for text in (*reference, *arm)], openings([*reference, *arm])
    opened = {f"begins with {name!r}": [float(own[name]) for own in counted] for name, n in kinds.items() if n > 1}
    measured = {name: [measure(text) for text in (*reference, *arm)] for name, measure in TRAITS.items()}
    shown = _telling(measured, clusters, alpha)[:MOST_TRAITS]
    return (*shown, *_telling(opened, clusters, alpha)[:MOST_TRAITS])


def _telling(measured: Mapping[str, Sequence[float]], clusters: Sequence[int], alpha: float) -> list[Trait]:
    """Those whose AUC is shown not to be 0.5. ``measured``: by name, of the reference answers and then of the arm's."""
    traits, rows = [], len(clusters)
    for name, values in measured.items():
        h, a = np.array(values[:rows]), np.array(values[rows:])
        alone = auc(h, a, np.zeros(rows), clusters, alpha / len(measured))
        if not alone.interval.low <= 0.5 <= alone.interval.high:
            traits.append(Trait(name, float(h.mean()), float(a.mean()), max(alone.value, 1 - alone.value)))
    return sorted(traits, key=lambda t: (-t.auc, t.name))


def _features(encode: Encode | None) -> FeatureUnion:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    encoded = [FunctionTransformer(lambda texts: np.asarray(encode(list(texts))))] if encode else []
    return make_union(
        TfidfVectorizer(
            analyzer="char_wb", ngram_range=(1, 5), lowercase=False, sublinear_tf=True, max_features=50_000
        ),
        make_pipeline(FunctionTransformer(_measured), StandardScaler()),
        *encoded,
    )


def _measured(texts: Sequence[str]) -> Floats:
    """log(1 + trait): traits are counts and rates with long tails."""
    return np.asarray(np.log1p([[measure(text) for measure in TRAITS.values()] for text in texts]))
