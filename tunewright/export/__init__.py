"""Exports, each verified in a fresh process, and their model cards. A new one is a module with an `Export`, listed
here."""

from tunewright.export.adapter import ADAPTER
from tunewright.export.merged import MERGED

# In the order in which they are written: merging changes the model permanently.
EXPORTS = {export.kind: export for export in (ADAPTER, MERGED)}
