"""US addresses to JSON: the demo's rows (usaddress 0.5.16, MIT, hand-labelled by its maintainers and contributors)."""

from __future__ import annotations

import shutil
from pathlib import Path

from tunewright.cli.demo import rows_file

out = Path(__file__).parent / "data" / "addresses.jsonl"
out.parent.mkdir(exist_ok=True)
shutil.copy(rows_file(), out)
print(out, out.read_text(encoding="utf-8").count("\n"), "rows")
