"""The known silent bugs of fine-tuning, each with a property that rules it out and a patch that plants it.

`test_faults.py` checks for each that the property holds, and that it fails once the bug is planted.
`docs/correctness.md` is written from these tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tunewright.core.errors import TunewrightError

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Fault:
    """``holds`` raises if the bug is present; ``plant`` introduces it. ``seen_in``: issues and pull requests of other
    trainers."""

    number: int
    bug: str
    seen_in: str
    invariant: str
    holds: Callable[[], Any]
    plant: Callable[[Patch], Any]


def refused(code: str, call: Callable[[], Any]) -> None:
    """Assert that ``call`` raises our error with that code."""
    try:
        call()
    except TunewrightError as error:
        if code in [p.code for p in error.problems]:
            return
        raise
    raise AssertionError(f"{code} was not raised")
