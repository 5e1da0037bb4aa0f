"""Exports, each verified in a fresh process, and their model cards. To add one, write a module with an `Export` and list
it here."""

from tunewright.export.adapter import ADAPTER
from tunewright.export.merged import MERGED

# In the order in which they are written: merging changes the model permanently.
EXPORTS = {export.kind: export for export in (ADAPTER, MERGED)}
