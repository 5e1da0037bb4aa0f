"""Which labels are probably wrong: confident learning (Northcutt, Jiang & Chuang 2021, 1911.00068) on out-of-fold shares. No torch.

Axes: R rows, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunewright import classical

FEWEST = 50


@dataclass(frozen=True)
class Suspect:
    """``row`` as numbered by the caller; ``confidence``: the share given to the label that the row bears."""

    row: int
    given: str
    likelier: str
    confidence: float


@dataclass(frozen=True)
class Noise:
    """``rate``: estimated share of wrong labels, with its bootstrap interval; ``suspects`` the likeliest first."""

    rows: int
    rate: float
    interval: tuple[float, float]
    suspects: tuple[Suspect, ...]
    accuracy: float


def find(texts: Sequence[str], labels: list[str], clusters: Sequence[int], rows: Sequence[int]) -> Noise | None:
    """Judged by TF-IDF and logistic regression, each row by folds that hold neither it nor its near-duplicates. None for fewer
    than 50 rows, one label, or where the classifier is no better than the commonest label: then it knows nothing."""
    if len(texts) < FEWEST or len(set(labels)) < 2:
        return None
    p_RL, names = classical.out_of_fold(texts, labels, clusters)
    found = judged(p_RL, names, labels, rows)
    commonest = max(labels.count(x) for x in set(labels)) / len(labels)
    return found if found.accuracy > commonest + 0.02 else None


def judged(p_RL: NDArray[np.float64], names: Sequence[str], labels: Sequence[str], rows: Sequence[int]) -> Noise:
    """Confident learning on out-of-fold shares, wherever they come from; ``names`` are the columns."""
    given_R = np.array([names.index(x) for x in labels])
    off_R = suspected(p_RL, given_R)
    order = sorted(np.flatnonzero(off_R).tolist(), key=lambda r: (p_RL[r, given_R[r]] - p_RL[r].max(), r))
    draw = np.random.Generator(np.random.Philox(key=0))
    picks = [draw.integers(0, len(labels), len(labels)) for _ in range(200)]
    low, high = np.quantile([rate(p_RL[pick], given_R[pick]) for pick in picks], (0.025, 0.975))
    suspects = tuple(
        Suspect(rows[r], labels[r], names[int(p_RL[r].argmax())], round(float(p_RL[r, given_R[r]]), 4)) for r in order
    )
    accuracy = float((p_RL.argmax(1) == given_R).mean())
    return Noise(len(labels), rate(p_RL, given_R), (float(low), float(high)), suspects, accuracy)


def thresholds(p_RL: NDArray[np.float64], given_R: NDArray[np.int64]) -> NDArray[np.float64]:
    """How sure the classifier is of a label, on average, among the rows that bear it; 1 for a label without rows."""
    return np.array([p_RL[given_R == j, j].mean() if (given_R == j).any() else 1.0 for j in range(p_RL.shape[1])])


def confident(p_RL: NDArray[np.float64], given_R: NDArray[np.int64]) -> NDArray[np.int64]:
    """The likeliest label among those that pass their threshold; the given one where none does."""
    over = np.where(p_RL >= thresholds(p_RL, given_R), p_RL, -1.0)
    return np.where(over.max(1) >= 0, over.argmax(1), given_R)


def suspected(p_RL: NDArray[np.float64], given_R: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.asarray(confident(p_RL, given_R) != given_R)


def rate(p_RL: NDArray[np.float64], given_R: NDArray[np.int64]) -> float:
    """Share of the confident joint off its diagonal, each given label weighted by how many rows bear it."""
    held = (p_RL >= thresholds(p_RL, given_R)).any(1)
    off = suspected(p_RL, given_R)
    total = 0.0
    for j in np.unique(given_R):
        mine = (given_R == j) & held
        total += float(off[mine].mean()) * float((given_R == j).sum()) if mine.any() else 0.0
    return total / len(given_R)
