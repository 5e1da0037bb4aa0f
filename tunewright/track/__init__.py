"""Trackers: the curves, the plan, the verdict and the report of a run, where people keep those of their other runs."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from tunewright.core.errors import MissingExtra
from tunewright.track.trackers import TRACKERS


def require(names: Sequence[str]) -> None:
    """Raises MISSING_PACKAGE for a tracker that is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingExtra(name, f"track={name}", f"pip install {name}", where="track")


__all__ = ["TRACKERS", "require"]
