"""Tool calls: 300 conversations from LLaMA-Factory's source archive (0.9.4, Apache-2.0), a sample of
glaive-function-calling-v2 (Glaive AI, Apache-2.0), written by a model and published as training data.

Each conversation ends with the first tool call in it, or, where there is none, with its first answer: when to call is
half of the task. The rows keep their ShareGPT notation.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

from tunewright.cli.demo import fetch
from tunewright.model.loading import cache_folder

SPEC, FILE = "llamafactory==0.9.4", "data/glaive_toolcall_en_demo.json"

out = Path(__file__).parent / "data" / "calls.jsonl"
out.parent.mkdir(exist_ok=True)
archive = fetch(SPEC, cache_folder() / "data")
with tarfile.open(archive) as tar:
    file = tar.extractfile(f"llamafactory-{SPEC.split('==')[1]}/{FILE}")
    assert file is not None
    conversations = json.load(file)
lines = []
for row in conversations:
    turns = row["conversations"]
    call = next((i for i, turn in enumerate(turns) if turn["from"] == "function_call"), 1)
    lines.append(json.dumps({**row, "conversations": turns[: call + 1]}, ensure_ascii=False) + "\n")
out.write_text("".join(lines), encoding="utf-8")
print(out, len(lines), "rows")
