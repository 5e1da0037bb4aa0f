"""What can be seen before a run: a row as the model reads it, and the audit of the data."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from build import Folder, Rows, cli, process


def test_preview_marks_the_trained_tokens(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    done = cli("preview", str(chat_rows()), "--row", "3", "--model", str(model_folder("llama")), "--json", cwd=tmp_path)
    (sequence,) = json.loads(done.stdout)
    assert "".join(t for t, w in zip(sequence["tokens"], sequence["weights"], strict=True) if w) == "BLUE<|im_end|>"


def test_preview_shows_tools_calls_results_and_thoughts(tmp_path: Path, model_folder: Folder) -> None:
    """Thoughts, calls and answers are targets, in green; tools and results are not."""
    tool = {"name": "get_weather", "description": "Weather of a city.", "parameters": {"type": "object"}}
    call = {"function": {"name": "get_weather", "arguments": {"city": "Linz"}}}
    messages = [
        {"role": "user", "content": "Rain in Linz?"},
        {"role": "assistant", "reasoning_content": "I must look.", "tool_calls": [call]},
        {"role": "tool", "content": "dry"},
        {"role": "assistant", "content": "No rain."},
    ]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": messages, "tools": [tool]}))
    command = ("preview", "rows.jsonl", "--model", str(model_folder("llama")), "template=chatml-tools")
    sequences = json.loads(cli(*command, "--json", cwd=tmp_path).stdout)
    written = ["".join(t for t, w in zip(s["tokens"], s["weights"], strict=True) if w) for s in sequences]
    assert written == [
        '<think>\nI must look.\n</think>\n\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Linz"}}\n'
        "</tool_call><|im_end|>",
        "No rain.<|im_end|>",
    ]
    shown = cli(*command, cwd=tmp_path).stdout
    for text in ("Weather of a city.", "<tool_response>\ndry\n</tool_response>", *written):
        assert text in re.sub(r"[⟦⟧]", "", shown)
    assert re.findall(r"⟦(.*?)⟧", shown, re.S) == written, "where there are no colours, brackets mark the targets"
    refused = cli(*command[:-1], cwd=tmp_path)
    assert refused.returncode == 2
    assert "TEMPLATE_LOSES_CONTENT" in refused.stderr
    assert "template=chatml-tools" in refused.stderr


def test_preview_names_the_answers_of_a_pair(tmp_path: Path, model_folder: Folder) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "q", "chosen": "yes", "rejected": "no"}')
    done = cli("preview", "rows.jsonl", "--model", str(model_folder("llama")), "train.method=dpo", cwd=tmp_path)
    assert re.findall(r"rows.jsonl:1, (\w+): .*?⟦(.*?)⟧", done.stdout, re.S) == [
        ("chosen", "yes<|im_end|>"),
        ("rejected", "no<|im_end|>"),
    ]


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


def test_the_page_of_an_audit_replaces_only_its_like(tmp_path: Path, chat_rows: Rows) -> None:
    rows, page = chat_rows(), tmp_path / "page.html"
    for _ in range(2):
        done = cli("check", str(rows), "--html", str(page), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"page: {page}" in done.stdout
        assert page.read_text().startswith("<!doctype html>")
    before = rows.read_bytes()
    assert "DATA_EXISTS" in cli("check", str(rows), "--html", str(rows), cwd=tmp_path).stderr
    assert rows.read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_full_disk_is_one_line(tmp_path: Path, chat_rows: Rows) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tunewright", "check", str(chat_rows())],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert "error[RUN_DISK]" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
