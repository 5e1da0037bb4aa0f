"""Files of all kinds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunewright.core.errors import DataError
from tunewright.data import sources


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet", "json"])
def test_files_of_all_kinds_hold_the_same_rows(tmp_path: Path, suffix: str) -> None:
    rows = [{"prompt": f'say "{w}", please', "completion": f"{w},\nyes; \u2028 é"} for w in ("one", "two", "three")]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    elif suffix == "json":
        path.write_text(json.dumps(rows))
    elif suffix == "csv":
        import csv

        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["prompt", "completion"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    assert [r.data for r in sources.read(path).rows] == rows


def test_a_message_about_a_broken_row_does_not_show_an_address(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "write to anna.b@mail.example.org" "label": "a"}\n')
    with pytest.raises(DataError) as caught:
        sources.read(path)
    assert "example" not in str(caught.value)
    assert "`" in str(caught.value)
