"""Exports, each verified in a fresh process, and their model cards. A new form is a file with an `Export` and a row
here."""

from tunewright.export.adapter import ADAPTER
from tunewright.export.merged import MERGED

# In the order in which they are written: merging changes the model for good.
EXPORTS = {export.kind: export for export in (ADAPTER, MERGED)}
