"""Documents: rows of plain text, without a question or an answer."""

from __future__ import annotations

from tunewright.data.formats.fields import required
from tunewright.data.formats.row_format import RowFormat, RowSettings
from tunewright.data.messages import Text
from tunewright.data.sources import Row


def _text(row: Row, how: RowSettings) -> Text:
    return Text(required(row, "text"), row.where)


FORMATS = (RowFormat("text", ("text",), _text, excludes=("prompt", "completion", "output", "instruction")),)
