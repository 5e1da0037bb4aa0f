"""The first stage of a run: its line about the data, and the audit that it writes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tunewright.core import config, records, run_folder
from tunewright.core.console import Console
from tunewright.core.records import Audit
from tunewright.core.run_folder import Run
from tunewright.data import dataset
from tunewright.report import build
from tunewright.runtime.context import Context
from tunewright.stages import check


def test_what_was_dropped_and_changed_is_in_the_line_the_audit_and_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps({"text": f"{i * 104729} has {i * 7919}", "label": "yn"[i % 2]}) for i in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:20], "oops", '{"text": "x\\u001by", "label": "n"}']))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress("\n".join([*lines[20:], lines[0]]).encode()))
    settings = ["data.invalid=drop", "data.control=strip", "data.duplicates=drop"]
    asked = config.load(None, settings, data__train=str(tmp_path / "*.jsonl*"))
    run = Run(tmp_path / "run")
    (run.path / "data").mkdir(parents=True)
    check.check(Context(run, asked, Console(False), "tunewright check", dataset.load(asked)))
    printed = capsys.readouterr().err
    assert "data *.jsonl*: 41 rows (2 dropped, 1 changed), format label" in printed
    assert "1 row dropped by data.invalid=drop, e.g. Expecting value at `oops`" in printed
    assert "1 row dropped by data.duplicates=drop, e.g. the same prompt and answer as" in printed
    assert "1 row changed by data.control=strip, e.g. removed U+001B" in printed
    audit = records.read(run.audit, Audit)
    assert audit.changes is not None
    assert [(c.setting, c.rows, c.where) for c in audit.changes] == [
        ("data.invalid=drop", 1, (f"{tmp_path}/a.jsonl:21:1",)),
        ("data.duplicates=drop", 1, (f"{tmp_path}/b.jsonl.gz:21",)),
        ("data.control=strip", 1, (f"{tmp_path}/a.jsonl:22",)),
    ]
    page = build.audit_page(audit, "rows")
    assert all(c.setting in page and c.message.split("`")[0] in page for c in audit.changes)
    split = list(run_folder.read_lines(run.split))
    assert [s["where"].rpartition("/")[2] for s in split[19:22]] == ["a.jsonl:20", "a.jsonl:22", "b.jsonl.gz:1"]
