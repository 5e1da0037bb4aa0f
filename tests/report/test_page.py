"""The report page of a run with all evidence."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tunewright import api
from tunewright.core.run_folder import Run, read_lines, write_lines
from tunewright.report import build


def test_the_sections_come_in_the_order_of_decisions(full: api.Result) -> None:
    page = full.report.read_text()
    heads = re.findall(r"<h2>(.*?)</h2>", page)
    assert heads[:6] == [
        "Better than what?",
        "What does a request cost?",
        "What was forgotten?",
        "Was there enough data?",
        "Was the data clean?",
        "Row by row",
    ]
    assert not re.search(r'(?:src|href)="https?:|<script|@import|url\((?!#)', page)
    assert "no forgetting" not in page.lower()
    assert "nan" not in re.sub(r"[a-z]nan|nan[a-z]", "", page.lower())
    assert (full.path / "data" / "audit.html").exists()


def test_the_page_shows_no_private_value(full: api.Result, tmp_path: Path) -> None:
    copy = Run(tmp_path / "copy")
    shutil.copytree(full.path, copy.path)
    for file in copy.scores.glob("*.jsonl"):
        lines = [{**x, "target": "to anna@mail.example.org", "score": len(file.stem) % 7 / 7} for x in read_lines(file)]
        write_lines(file, lines)
    build.write(copy)
    page = copy.report.read_text()
    assert "mail.example" not in page
    assert "to [e-mail address]" in page
