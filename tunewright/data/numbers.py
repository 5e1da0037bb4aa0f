"""Numbers as answers: how they are read from text, and the training answers that they are compared with."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


def exact(text: str) -> float | None:
    """The finite number that the text is; None if it is none."""
    value = float(text) if _NUMBER.fullmatch(text.strip()) else math.nan
    return value if math.isfinite(value) else None


def read(text: str) -> float | None:
    """The one finite number in the text, whatever is around it; None if it has none or several."""
    values = _NUMBER.findall(text)
    return exact(values[0]) if len(values) == 1 else None


@dataclass(frozen=True)
class Numbers:
    """Of the training answers: mean, standard deviation, smallest and largest."""

    mean: float
    deviation: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Numbers:
        return Numbers(float(np.mean(values)), float(np.std(values)), min(values), max(values))

    def predicted(self, answer: str, target: float) -> float:
        """The number that an answer counts as: the nearest in the range of the training answers; an answer that is no
        number counts as the end of the range that is farther from the target."""
        value = read(answer)
        if value is None:
            return self.low if target - self.low > self.high - target else self.high
        return min(max(value, self.low), self.high)
