"""What can be seen before a run: a row as the model reads it, and the audit of the data."""

from __future__ import annotations

import json
from pathlib import Path

from build import Folder, Rows, cli, process


def test_preview_marks_the_trained_tokens(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    done = cli("preview", str(chat_rows()), "--row", "3", "--model", str(model_folder("llama")), "--json", cwd=tmp_path)
    (sequence,) = json.loads(done.stdout)
    assert "".join(t for t, w in zip(sequence["tokens"], sequence["weights"], strict=True) if w) == "BLUE<|im_end|>"


def test_check_loads_no_torch_on_5000_rows(tmp_path: Path) -> None:
    data = tmp_path / "many.jsonl"
    data.write_text(
        "".join(
            json.dumps({"prompt": f"{i * 7919 % 5003} questions about {i} things", "completion": f"answer {i % 977}"})
            + "\n"
            for i in range(5000)
        )
    )
    code = f"""
import sys
from tunewright.cli import main
sys.argv = ["tunewright", "check", {str(data)!r}]
try:
    main.main()
except SystemExit as ended:
    assert not ended.code
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    done = process("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "5000 rows" in done.stdout
