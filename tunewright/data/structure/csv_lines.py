"""Lines of comma-separated values, and which texts are certainly that: prose with commas is not."""

from __future__ import annotations

import csv
import re

from tunewright.data.structure.values import unfenced

DELIMITERS = (",", ";", "\t", "|")
COLUMNS_OF_ONE_LINE = 3  # with two, 1,234 and 3,14 would be rows
_GROUPED_DIGITS = re.compile(r"[-+$€£\s]*\d{1,3}(,\d{3})+(\.\d+)?\s*%?")


def columns(text: str, delimiter: str) -> int | None:
    """The number of columns of every line; None if the lines differ, a quote is not closed, or there are no lines."""
    lines = unfenced(text).strip("\r\n").splitlines()
    try:
        counts = {len(row) for row in csv.reader(lines, delimiter=delimiter, strict=True)}
    except csv.Error:
        return None
    return counts.pop() if len(counts) == 1 else None


def shape(text: str) -> tuple[str, int] | None:
    """(delimiter, number of columns) of a text that is certainly lines of values: several columns in several lines, or
    three in one; no space after a delimiter, as prose has it, and no digits in groups of three."""
    lines = [line for line in unfenced(text).strip().splitlines() if line.strip()]
    fewest = 2 if len(lines) > 1 else COLUMNS_OF_ONE_LINE
    for delimiter in DELIMITERS:
        count = columns(text, delimiter) if delimiter in text and f"{delimiter} " not in text else None
        if count is not None and count >= fewest and not any(_GROUPED_DIGITS.fullmatch(line) for line in lines):
            return delimiter, count
    return None


def is_valid(answer: str, like: str) -> bool:
    """Whether every line of an answer has as many columns as those of ``like``."""
    expected = shape(like)
    return expected is not None and columns(answer, expected[0]) == expected[1]
