"""Every known silent bug: its property holds, and fails once the bug is planted. The table is printed at the end of the
test run (`-rN` hides it)."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import (
    Fault,
    adapting,
    computing,
    distilling,
    embedding,
    encoding,
    heading,
    judging,
    preferring,
    rating,
    resuming,
    rewarding,
    structure,
    tokens,
)

FAULTS = sorted(
    [
        *tokens.FAULTS,
        *computing.FAULTS,
        *adapting.FAULTS,
        *resuming.FAULTS,
        *judging.FAULTS,
        *structure.FAULTS,
        *preferring.FAULTS,
        *rating.FAULTS,
        *heading.FAULTS,
        *embedding.FAULTS,
        *encoding.FAULTS,
        *rewarding.FAULTS,
        *distilling.FAULTS,
    ],
    key=lambda f: f.number,
)


def test_they_are_numbered_and_the_readme_has_their_number() -> None:
    assert [fault.number for fault in FAULTS] == list(range(1, len(FAULTS) + 1))
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    assert f"| {len(FAULTS)} known silent bugs: " in readme


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.number}-{f.bug}")
def test_the_property_holds(fault: Fault) -> None:
    fault.holds()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.number}-{f.bug}")
def test_the_planted_bug_is_detected(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    fault.plant(monkeypatch)
    with pytest.raises(Exception):  # noqa: B017  (an assertion, or our error: the property says which)
        fault.holds()
