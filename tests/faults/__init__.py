"""The known silent bugs of fine-tuning, each beside the property that makes it impossible and a patch that plants it.

`test_faults.py` asks of every row that the property holds, and that it fails once the bug is planted. Numbers and
evidence are those of `docs/correctness.md`, which is written from these tables.
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
    """``holds`` raises where the bug is there; ``plant`` puts it there (None: it cannot apply yet, and ``invariant``
    says why)."""

    number: int
    bug: str
    evidence: str
    invariant: str
    holds: Callable[[], Any]
    plant: Callable[[Patch], Any] | None


def refused(code: str, call: Callable[[], Any]) -> None:
    """``call`` raises our error of that code."""
    try:
        call()
    except TunewrightError as error:
        if code in [p.code for p in error.problems]:
            return
        raise
    raise AssertionError(f"{code} was not raised")
