"""The audit flags rows with reasons and shows nothing private."""

from __future__ import annotations

import json
from pathlib import Path

from tunewright.core import config
from tunewright.data import dataset


def test_the_audit_flags_with_rows_and_reasons(tmp_path: Path) -> None:
    rows = [{"text": f"a text about number {i * 7919} and {i}", "label": ("good", "bad")[i % 2]} for i in range(60)]
    rows += [
        rows[3],
        {**rows[4], "label": "bad"},
        {"text": "write to someone@example.org now", "label": "Good"},
        {"text": "card 4111 1111 1111 1111 is mine", "label": "good"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    audited = dataset.load(config.load(None, data__train=str(path))).audit_json()
    codes = {f["code"]: f for f in audited["findings"]}
    assert {"DUPLICATES", "CONTRADICTIONS", "LABELS_RARE", "LABELS_NEAR_DUPLICATE", "PRIVATE_DATA"} <= set(codes)
    assert codes["CONTRADICTIONS"]["rows"] == (4, 61)
    assert codes["CONTRADICTIONS"]["where"][0].endswith("rows.jsonl:5")
    assert "4111" not in json.dumps(audited), "what may be private is not shown"
    assert "someone@" not in json.dumps(audited)
