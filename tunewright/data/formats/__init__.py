"""Row formats: how a row of each becomes an Example. `FORMATS` has them all, in the order of detection."""

from __future__ import annotations

from collections.abc import Sequence

from tunewright.data.formats import chats, labelled, preferences, prompted, ratings, row_format, unanswered
from tunewright.data.formats.row_format import Parsed, RowSettings
from tunewright.data.sources import Row

__all__ = ["FORMATS", "FORMAT_NAMES", "Parsed", "RowSettings", "parse"]

FORMATS = (
    *preferences.FORMATS,
    *ratings.FORMATS,
    *unanswered.PROMPTS,
    *unanswered.TEXT_PAIRS,
    labelled.LABELLED_CHAT,
    *chats.FORMATS,
    *prompted.FORMATS,
    *labelled.FORMATS,
    *unanswered.DOCUMENTS,
)
FORMAT_NAMES = tuple(f.name for f in FORMATS)  # the values of data.format
AS_WRITTEN = RowSettings()


def parse(rows: Sequence[Row], how: RowSettings = AS_WRITTEN) -> Parsed:
    """All rows as Examples. Raises DataError with every problem of every row."""
    return row_format.parse(rows, FORMATS, how)
