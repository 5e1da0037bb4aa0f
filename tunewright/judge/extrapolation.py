"""Learning curves: the gain from the last doubling of the data, and a cautious forecast of the next. Pure numpy/scipy.

Shapes of learning curves are "surprisingly diverse" (Viering & Loog 2103.10948), so a forecast is an ensemble of
formulas, extends to twice the data and no further, and is withheld if the same method would have missed the last
measured point. Axes: P points, S seeds, R rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from tunewright.judge.statistics import clustered_interval

Floats = NDArray[np.float64]


class Formula(NamedTuple):
    """Error as a function of the number of rows x (1 at the largest measured size) and of parameters, with the
    parameters' initial values and bounds."""

    error: Callable[..., Floats]
    start: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


FORMULAS = {
    "power": Formula(lambda x, a, b: a * x**-b, (0.3, 0.3), (0, 0), (2, 3)),
    "power with a floor": Formula(lambda x, a, b, c: a * x**-b + c, (0.2, 0.5, 0.1), (0, 0, 0), (2, 3, 1)),
    "exponential": Formula(lambda x, a, b, c: a * np.exp(-b * x) + c, (0.3, 2.0, 0.1), (0, 0, 0), (2, 50, 1)),
    "logarithm": Formula(lambda x, a, b: a - b * np.log(x), (0.3, 0.05), (-1, 0), (2, 1)),
}


def last_doubling(
    all_SR: Floats, half_SR: Floats, clusters: Sequence[int], alpha: float, margin: float, bound: float = 1.0
) -> dict[str, Any]:
    """Gain in score from training on all rows instead of half of them, on the same test rows.

    The half-width of the interval combines two independent uncertainties (root of the sum of squares): the clustered
    interval of the rows' mean gains, and, if there are several seeds, the t interval of the seeds' gains.
    """
    gain_R = all_SR.mean(0) - half_SR.mean(0)
    low, high, _ = clustered_interval(gain_R, clusters, alpha, bound)
    seeds = len(all_SR)
    gain = float(gain_R.mean())
    if seeds > 1:
        of_seed = all_SR.mean(1) - half_SR.mean(1)
        extra = float(of_seed.std(ddof=1)) / np.sqrt(seeds) * float(stats.t.isf(alpha / 2, seeds - 1))
        low, high = gain - np.hypot(gain - low, extra), gain + np.hypot(high - gain, extra)
    word = "helps" if low > 0 else "does not visibly help" if high < margin else "may or may not help"
    return {"gain": gain, "interval": [float(low), float(high)], "seeds": seeds, "outcome": word}


def forecast(
    sizes: Sequence[int], scores_PSR: Sequence[Floats], alpha: float = 0.1, resamples: int = 200, seed: int = 0
) -> dict[str, Any]:
    """Score at twice the largest size, or why there is no forecast. ``scores_PSR[p]``: the scores at sizes[p].

    The last measured point is first predicted from those before it; if that interval misses it, no forecast is given.
    """
    if len(sizes) < 4:
        return {"available": False, "reason": "a forecast needs four sizes"}
    measured = float(scores_PSR[-1].mean())
    back = _ensemble(sizes[:-1], scores_PSR[:-1], sizes[-1], alpha, resamples, seed)
    record: dict[str, Any] = {"back_test": {"predicted": back[0], "interval": [back[1], back[2]], "measured": measured}}
    if not back[1] <= measured <= back[2]:
        return {**record, "available": False, "reason": "the same method misses the last measured point"}
    middle, low, high = _ensemble(sizes, scores_PSR, 2 * sizes[-1], alpha, resamples, seed)
    return {
        **record,
        "available": True,
        "rows": 2 * sizes[-1],
        "score": middle,
        "interval": [low, high],
        "alpha": alpha,
    }


def _ensemble(
    sizes: Sequence[int], scores_PSR: Sequence[Floats], at: int, alpha: float, resamples: int, seed: int
) -> tuple[float, float, float]:
    """(median, low, high) over formulas and bootstrap draws of rows and seeds."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    rows, seeds = scores_PSR[0].shape[1], scores_PSR[0].shape[0]
    x = np.asarray(sizes, float) / sizes[-1]
    scores: list[float] = []
    for b in range(resamples):
        pick = rng.integers(0, rows, rows) if b else np.arange(rows)
        which = rng.integers(0, seeds, seeds) if b else np.arange(seeds)
        error = np.array([1 - s[which][:, pick].mean() for s in scores_PSR])
        fitted = (_fitted(formula, x, error, at / sizes[-1]) for formula in FORMULAS.values())
        scores += [1 - e for e in fitted if e is not None]
    low, middle, high = np.quantile(np.clip(scores, 0, 1), (alpha / 2, 0.5, 1 - alpha / 2))
    return float(middle), float(low), float(high)


def _fitted(formula: Formula, x: Floats, error: Floats, at: float) -> float | None:
    """The formula's error at ``at``, fitted by least squares; None with fewer points than parameters."""
    if len(formula.start) > len(x):
        return None

    def residuals(parameters: Floats) -> Floats:
        return np.asarray(formula.error(x, *parameters) - error)

    fit = optimize.least_squares(residuals, formula.start, bounds=(formula.low, formula.high))
    return float(formula.error(np.array([at]), *fit.x)[0])
