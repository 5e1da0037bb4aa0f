"""Which labels are probably wrong, from a model's predictions for rows that it was not trained on. No torch.

The given label is modelled as the true label after a noisy channel (Patrini et al. 2017, 1609.03683): with probability
``rate`` it becomes one of the others, each equally likely. The classifier is calibrated by one temperature (Guo et al.
2017, 1706.04599). Both numbers are fitted to the given labels by maximum likelihood, and determine each row's
probability of being wrong. Confident learning (1911.00068), which needs no noise model, mistakes a weak classifier's
own errors for wrong labels: on planted noise it flags more rows and is right about fewer (benchmarks/known_answers.py
measures both).

Axes: R rows, L labels, T temperatures, E rates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tunewright.data import baselines

MIN_ROWS = 50
SUSPECT = 0.5  # more likely wrong than right
TEMPERATURES_T = np.geomspace(0.2, 5.0, 49)
RATES_E = np.linspace(0.0, 0.6, 121)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Suspect:
    """``row``: the caller's row number; ``prob_wrong``: the probability that the label is wrong."""

    row: int
    given: str
    predicted: str
    prob_wrong: float


@dataclass(frozen=True)
class Noise:
    """``rate``: estimated fraction of wrong labels, with its 95% interval; ``suspects``: the rows whose label is more
    likely wrong than right, most likely first; ``accuracy``: how often the model's first choice is the given label."""

    rows: int
    rate: float
    interval: tuple[float, float]
    suspects: tuple[Suspect, ...]
    accuracy: float

    @property
    def expected(self) -> float:
        """The expected number of suspects whose label is truly wrong."""
        return sum(s.prob_wrong for s in self.suspects)

    def to_json(self) -> dict[str, Any]:
        value = dataclasses.asdict(self)
        return {
            **value,
            "interval": list(self.interval),
            "suspects": list(value["suspects"]),
            "expected": self.expected,
        }


def find(texts: Sequence[str], labels: list[str], clusters: Sequence[int], rows: Sequence[int]) -> Noise | None:
    """The estimate from cross-validated TF-IDF and logistic regression, with near-duplicates in the same fold. None
    for fewer than 50 rows, for a single label, or if the classifier is no better than the most frequent label."""
    if len(texts) < MIN_ROWS or len(set(labels)) < 2:
        return None
    p_RL, names = baselines.out_of_fold(texts, labels, clusters)
    noise = estimate(p_RL, names, labels, rows)
    most_frequent = max(labels.count(x) for x in set(labels)) / len(labels)
    return noise if noise.accuracy > most_frequent + 0.02 else None


def estimate(p_RL: Floats, names: Sequence[str], labels: Sequence[str], rows: Sequence[int]) -> Noise:
    """The estimate from any model's out-of-fold probabilities; ``names`` are the labels of the columns."""
    given_R = np.array([names.index(x) for x in labels])
    temperature, rate, interval = channel(p_RL, given_R)
    wrong_R = prob_wrong(p_RL, given_R, temperature, rate)
    order = sorted(np.flatnonzero(wrong_R >= SUSPECT).tolist(), key=lambda r: (-wrong_R[r], r))
    suspects = tuple(
        Suspect(
            row=rows[r],
            given=labels[r],
            predicted=names[int(p_RL[r].argmax())],
            prob_wrong=round(float(wrong_R[r]), 4),
        )
        for r in order
    )
    accuracy = float((p_RL.argmax(1) == given_R).mean())
    return Noise(rows=len(labels), rate=rate, interval=interval, suspects=suspects, accuracy=accuracy)


def channel(p_RL: Floats, given_R: NDArray[np.int64], alpha: float = 0.05) -> tuple[float, float, tuple[float, float]]:
    """(temperature, rate, interval of the rate): the maximum-likelihood point of a grid, and the rates that a
    likelihood-ratio test at ``alpha`` does not reject."""
    others = p_RL.shape[1] - 1
    fit_TE = np.empty((len(TEMPERATURES_T), len(RATES_E)))
    for t, temperature in enumerate(TEMPERATURES_T):
        own_R1 = tempered(p_RL, temperature)[np.arange(len(given_R)), given_R, None]
        fit_TE[t] = np.log(own_R1 * (1 - RATES_E) + (1 - own_R1) * RATES_E / others + 1e-300).sum(0)
    t, e = divmod(int(fit_TE.argmax()), len(RATES_E))
    kept = np.flatnonzero(fit_TE.max(0) >= fit_TE.max() - stats.chi2.ppf(1 - alpha, 1) / 2)
    # The first rejected points rather than the last accepted ones: the grid is coarse.
    low, high = max(0, kept.min() - 1), min(len(RATES_E) - 1, kept.max() + 1)
    return float(TEMPERATURES_T[t]), float(RATES_E[e]), (float(RATES_E[low]), float(RATES_E[high]))


def prob_wrong(p_RL: Floats, given_R: NDArray[np.int64], temperature: float, rate: float) -> Floats:
    """P(label is wrong | text, label) for every row, by Bayes' rule."""
    own_R = tempered(p_RL, temperature)[np.arange(len(given_R)), given_R]
    wrong_R = (1 - own_R) * rate / (p_RL.shape[1] - 1)
    return np.asarray(wrong_R / (wrong_R + own_R * (1 - rate) + 1e-300))


def tempered(p_RL: ArrayLike, temperature: float) -> Floats:
    """The probabilities at a temperature: flatter above 1, sharper below 1, in the same order."""
    logits_RL = np.log(np.clip(np.asarray(p_RL, float), 1e-9, 1.0)) / temperature
    raised_RL = np.exp(logits_RL - logits_RL.max(1, keepdims=True))
    return np.asarray(raised_RL / raised_RL.sum(1, keepdims=True))
