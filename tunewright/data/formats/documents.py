"""Documents: rows of plain text, without a question or an answer."""

from __future__ import annotations

from tunewright.data.formats.fields import required
from tunewright.data.formats.row_format import RowFormat, RowSettings
from tunewright.data.messages import Text
from tunewright.data.sources import Row

# A row with one of these beside its text is more than a document.
ANSWERS = ("prompt", "instruction", "question", "completion", "output", "response", "answer", "target", "summary")


def _text(row: Row, how: RowSettings) -> Text:
    return Text(required(row, "text"), row.where)


FORMATS = (RowFormat("text", ("text",), _text, excludes=ANSWERS),)
