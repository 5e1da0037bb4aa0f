"""What can be seen before a run: a row as the model reads it, and the audit of the data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from build import Folder, Rows, cli


def test_preview_marks_the_trained_tokens(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    done = cli("preview", str(chat_rows()), "--row", "3", "--model", str(model_folder("llama")), "--json", cwd=tmp_path)
    (sequence,) = json.loads(done.stdout)
    assert "".join(t for t, w in zip(sequence["tokens"], sequence["weights"], strict=True) if w) == "BLUE<|im_end|>"


def test_check_loads_no_torch_on_5000_rows(tmp_path: Path) -> None:
    data = tmp_path / "many.jsonl"
    data.write_text(
        "".join(
            json.dumps({"prompt": f"{i * 7919 % 5003} questions about {i} things", "completion": f"answer {i % 977}"}) + "\n"
            for i in range(5000)
        )
    )
    code = f"import sys; sys.argv=['tunewright','check',{str(data)!r}]\nfrom tunewright import cli\ntry:\n cli.main()\nexcept SystemExit as e:\n assert not e.code\nassert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "5000 rows" in done.stdout
