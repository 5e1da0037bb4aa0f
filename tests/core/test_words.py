"""Singular and plural in messages."""

from __future__ import annotations

from tunewright.core.words import counted


def test_one_is_singular() -> None:
    assert [counted(n, "row") for n in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
    assert counted(2, "loss", "losses") == "2 losses"
