"""Counts in messages, with the noun in singular or plural; durations; texts and names that users wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Control characters, line ends, and what changes the direction of a text: in a name they could forge a line of output.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def counted(number: int, noun: str, plural: str = "") -> str:
    """``1 row``, ``2 rows``; ``plural``: if it is not ``noun`` with an s."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


LONG_HOURS = 4  # a run of more begins only if somebody agrees


def duration(seconds: float) -> str:
    """``45 s``, ``8 min``, ``2 h 10 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def on_one_line(text: str) -> str:
    """The text with such characters written as escapes."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def first_repeated(names: Sequence[str]) -> str | None:
    """The first name that occurred before."""
    return next((name for i, name in enumerate(names) if name in names[:i]), None)


def listed_fields(unused: dict[str, int]) -> str:
    """Fields with the number of rows that have them."""
    return on_one_line(", ".join(f"{name} ({counted(rows, 'row')})" for name, rows in unused.items()))
