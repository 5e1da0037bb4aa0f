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


def test_a_run_with_fewer_threads_is_repeated_with_the_planned_ones(tmp_path: Path, proved: Path) -> None:
    """The bits of crowded steps depend on what else ran, so the repetition may differ; it says why."""
    run = copied(proved, tmp_path)
    for name, changed in (("plan", {"adapt_threads": True}), ("receipt", {"crowded_steps": 2})):
        file = run / f"{name}.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    lines[-1]["threads"] = 1
    (run / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    result = json.loads(cli("runs", "reproduce", "r", "--json", cwd=tmp_path).stdout)
    assert result["equal"]
    assert result["differs"] == {"steps with fewer threads": [2, 0]}
    assert "adapt_threads" not in json.loads((tmp_path / result["run"] / "plan.json").read_text())
