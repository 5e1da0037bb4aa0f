"""Trackers: the curves, the plan, the verdict and the report of a run, where people keep those of their other runs."""

from tunewright.track.trackers import TRACKERS

__all__ = ["TRACKERS"]
