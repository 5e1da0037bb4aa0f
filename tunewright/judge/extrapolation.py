"""Learning curves: what the last doubling of the data gained, and a careful word about the next. Pure numpy/scipy.

Forms of learning curves are "surprisingly diverse" (Viering & Loog 2103.10948), so a forecast is an ensemble of forms, goes to
twice the data and no further, and is withheld where the same method would have missed the last point that was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from tunewright.judge.statistics import clustered_interval

Floats = NDArray[np.float64]
Form = Callable[..., Floats]
# Error as a function of the number of rows x (1 at the largest measured), with where to start and how far parameters may go.
FORMS: dict[str, tuple[Form, tuple[float, ...], tuple[tuple[float, ...], tuple[float, ...]]]] = {
    "power": (lambda x, a, b: a * x**-b, (0.3, 0.3), ((0, 0), (2, 3))),
    "power with a floor": (lambda x, a, b, c: a * x**-b + c, (0.2, 0.5, 0.1), ((0, 0, 0), (2, 3, 1))),
    "exponential": (lambda x, a, b, c: a * np.exp(-b * x) + c, (0.3, 2.0, 0.1), ((0, 0, 0), (2, 50, 1))),
    "logarithm": (lambda x, a, b: a - b * np.log(x), (0.3, 0.05), ((-1, 0), (2, 1))),
}


def last_doubling(whole_SR: Floats, half_SR: Floats, clusters: Sequence[int], alpha: float, margin: float) -> dict[str, Any]:
    """Gain of all rows over half of them, in score. Axes: S seeds, R test rows (the same in both).

    The interval adds what the choice of rows and the choice of seeds leave open, as one adds independent half-widths: the
    clustered interval of the rows' mean gains, and the t interval of the seeds' gains where there are several.
    """
    gain_R = whole_SR.mean(0) - half_SR.mean(0)
    low, high, _ = clustered_interval(gain_R, clusters, alpha)
    seeds = len(whole_SR)
    gain = float(gain_R.mean())
    if seeds > 1:
        of_seed = whole_SR.mean(1) - half_SR.mean(1)
        extra = float(of_seed.std(ddof=1)) / np.sqrt(seeds) * float(stats.t.isf(alpha / 2, seeds - 1))
        low, high = gain - np.hypot(gain - low, extra), gain + np.hypot(high - gain, extra)
    word = "helps" if low > 0 else "does not visibly help" if high < margin else "may or may not help"
    return {"gain": gain, "interval": [float(low), float(high)], "seeds": seeds, "word": word}


def forecast(
    sizes: Sequence[int], scores_PSR: Sequence[Floats], alpha: float = 0.1, resamples: int = 200, seed: int = 0
) -> dict[str, Any]:
    """Score at twice the largest size, or why it is not told. ``scores_PSR[p]``: rows' scores at sizes[p], of S seeds.

    The last measured point is first predicted from those before it; if its own interval misses, nothing is told.
    """
    if len(sizes) < 4:
        return {"told": False, "why": "a forecast needs four sizes"}
    measured = float(scores_PSR[-1].mean())
    back = _ensemble(sizes[:-1], scores_PSR[:-1], sizes[-1], alpha, resamples, seed)
    told: dict[str, Any] = {"back_test": {"predicted": back[0], "interval": [back[1], back[2]], "measured": measured}}
    if not back[1] <= measured <= back[2]:
        return {**told, "told": False, "why": "the same method misses the last point that was measured"}
    middle, low, high = _ensemble(sizes, scores_PSR, 2 * sizes[-1], alpha, resamples, seed)
    return {**told, "told": True, "rows": 2 * sizes[-1], "score": middle, "interval": [low, high], "alpha": alpha}


def _ensemble(
    sizes: Sequence[int], scores_PSR: Sequence[Floats], at: int, alpha: float, resamples: int, seed: int
) -> tuple[float, float, float]:
    """(median, low, high) over forms and bootstrap draws of rows and seeds."""
    draw = np.random.Generator(np.random.Philox(key=seed))
    rows, seeds = scores_PSR[0].shape[1], scores_PSR[0].shape[0]
    x = np.asarray(sizes, float) / sizes[-1]
    found: list[float] = []
    for b in range(resamples):
        pick = draw.integers(0, rows, rows) if b else np.arange(rows)
        which = draw.integers(0, seeds, seeds) if b else np.arange(seeds)
        error = np.array([1 - s[which][:, pick].mean() for s in scores_PSR])
        found += [1 - e for name in FORMS if (e := _fitted(name, x, error, at / sizes[-1])) is not None]
    low, middle, high = np.quantile(np.clip(found, 0, 1), (alpha / 2, 0.5, 1 - alpha / 2))
    return float(middle), float(low), float(high)


def _fitted(name: str, x: Floats, error: Floats, at: float) -> float | None:
    form, start, bounds = FORMS[name]
    if len(start) > len(x):
        return None

    def missed(parameters: Floats) -> Floats:
        return np.asarray(form(x, *parameters) - error)

    found = optimize.least_squares(missed, start, bounds=bounds)
    return float(form(np.array([at]), *found.x)[0])
