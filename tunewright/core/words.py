"""Counts in messages, with the noun in singular or plural."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """``1 row``, ``2 rows``; ``plural``: if it is not ``noun`` with an s."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"
