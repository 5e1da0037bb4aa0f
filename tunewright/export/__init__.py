"""Exports, each verified in a fresh process, and their model cards; bundles made from them. A new export is a module
with an `Export`, listed here."""

from tunewright.export.adapter import ADAPTER
from tunewright.export.bundles import BUNDLES
from tunewright.export.gguf.lora import LORA_GGUF
from tunewright.export.gguf.model import GGUF
from tunewright.export.merged import MERGED

EXPORTS = {export.kind: export for export in (ADAPTER, MERGED, GGUF, LORA_GGUF)}
KINDS = (*EXPORTS, *BUNDLES)
