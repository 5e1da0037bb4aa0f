"""A run is repeated and compared."""

from __future__ import annotations

import json
from pathlib import Path

from build import cli, copied


def test_a_repeated_run_is_equal_and_with_changed_data_the_difference_is_named(tmp_path: Path, proved: Path) -> None:
    copied(proved, tmp_path)
    done = cli("runs", "reproduce", "r", "--json", cwd=tmp_path)
    result = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert result["equal"]
    assert result["compared"] == "weights, losses and scores"
    assert result["differs"] == {}
    data = tmp_path / "rows.jsonl"
    data.write_text(data.read_text().replace("RED", "Red"))
    done = cli("runs", "reproduce", "r", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "weights     DIFFERENT" in done.stdout
    assert "sha256 of data" in done.stdout
    assert (tmp_path / "runs" / "r-rerun-2").is_dir()
