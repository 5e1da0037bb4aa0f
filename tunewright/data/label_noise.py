"""Which labels are probably wrong, from what a model says of rows that it has not seen. No torch.

The label on a row is taken as its true label sent through a noisy channel (Patrini et al. 2017, 1609.03683): with probability
``rate`` it becomes any other, each alike. What the model says is made honest by one temperature (Guo et al. 2017, 1706.04599). Both
numbers are fitted by maximum likelihood to the labels as they stand, and with them every row has a chance to be wrong. Confident
learning (1911.00068), which needs no such model of noise, takes a weak classifier's own errors for wrong labels: on planted noise it
flags more rows and is right about fewer (benchmarks/known_answers.py measures both).

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

FEWEST = 50
WORTH_A_LOOK = 0.5  # likelier wrong than right
TEMPERATURES_T = np.geomspace(0.2, 5.0, 49)
RATES_E = np.linspace(0.0, 0.6, 121)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Suspect:
    """``row`` as numbered by the caller; ``chance``: probability that its label is wrong."""

    row: int
    given: str
    likelier: str
    chance: float


@dataclass(frozen=True)
class Noise:
    """``rate``: estimated share of wrong labels, with its 95 % interval; ``suspects`` are the rows worth a look, the
    likeliest first; ``accuracy``: how often the model's first choice is the label that the row bears."""

    rows: int
    rate: float
    interval: tuple[float, float]
    suspects: tuple[Suspect, ...]
    accuracy: float

    @property
    def expected(self) -> float:
        """How many of the suspects are expected to be wrong."""
        return sum(s.chance for s in self.suspects)

    def to_json(self) -> dict[str, Any]:
        found = dataclasses.asdict(self)
        return {**found, "interval": list(self.interval), "suspects": list(found["suspects"]), "expected": self.expected}


def find(texts: Sequence[str], labels: list[str], clusters: Sequence[int], rows: Sequence[int]) -> Noise | None:
    """Judged by TF-IDF and logistic regression, each row by folds that hold neither it nor its near-duplicates. None for fewer
    than 50 rows, one label, or where the classifier is no better than the commonest label: then it knows nothing."""
    if len(texts) < FEWEST or len(set(labels)) < 2:
        return None
    p_RL, names = baselines.out_of_fold(texts, labels, clusters)
    found = judged(p_RL, names, labels, rows)
    commonest = max(labels.count(x) for x in set(labels)) / len(labels)
    return found if found.accuracy > commonest + 0.02 else None


def judged(p_RL: Floats, names: Sequence[str], labels: Sequence[str], rows: Sequence[int]) -> Noise:
    """From out-of-fold shares, wherever they come from; ``names`` are the columns."""
    given_R = np.array([names.index(x) for x in labels])
    temperature, rate, interval = channel(p_RL, given_R)
    chance_R = chances(p_RL, given_R, temperature, rate)
    order = sorted(np.flatnonzero(chance_R >= WORTH_A_LOOK).tolist(), key=lambda r: (-chance_R[r], r))
    suspects = tuple(Suspect(rows[r], labels[r], names[int(p_RL[r].argmax())], round(float(chance_R[r]), 4)) for r in order)
    return Noise(len(labels), rate, interval, suspects, float((p_RL.argmax(1) == given_R).mean()))


def channel(p_RL: Floats, given_R: NDArray[np.int64], alpha: float = 0.05) -> tuple[float, float, tuple[float, float]]:
    """(temperature, rate, interval of the rate): the maximum of the likelihood on a grid, and the rates that a likelihood-ratio
    test at ``alpha`` does not exclude."""
    others = p_RL.shape[1] - 1
    fit_TE = np.empty((len(TEMPERATURES_T), len(RATES_E)))
    for t, temperature in enumerate(TEMPERATURES_T):
        own_R1 = tempered(p_RL, temperature)[np.arange(len(given_R)), given_R, None]
        fit_TE[t] = np.log(own_R1 * (1 - RATES_E) + (1 - own_R1) * RATES_E / others + 1e-300).sum(0)
    t, e = divmod(int(fit_TE.argmax()), len(RATES_E))
    kept = np.flatnonzero(fit_TE.max(0) >= fit_TE.max() - stats.chi2.ppf(1 - alpha, 1) / 2)
    low, high = max(0, kept.min() - 1), min(len(RATES_E) - 1, kept.max() + 1)  # the first excluded points: a grid is coarse
    return float(TEMPERATURES_T[t]), float(RATES_E[e]), (float(RATES_E[low]), float(RATES_E[high]))


def chances(p_RL: Floats, given_R: NDArray[np.int64], temperature: float, rate: float) -> Floats:
    """P(label is wrong | text, label) for every row, by Bayes."""
    own_R = tempered(p_RL, temperature)[np.arange(len(given_R)), given_R]
    wrong_R = (1 - own_R) * rate / (p_RL.shape[1] - 1)
    return np.asarray(wrong_R / (wrong_R + own_R * (1 - rate) + 1e-300))


def tempered(p_RL: ArrayLike, temperature: float) -> Floats:
    """Shares with their logarithms divided by ``temperature``: above 1 flatter, below 1 sharper, the order unchanged."""
    logits_RL = np.log(np.clip(np.asarray(p_RL, float), 1e-9, 1.0)) / temperature
    raised_RL = np.exp(logits_RL - logits_RL.max(1, keepdims=True))
    return np.asarray(raised_RL / raised_RL.sum(1, keepdims=True))
