"""The verdict: dev chooses, test decides, every arm answers the same rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from build import FLAGS, Folder, Rows, cli, read

from tunewright import api


def test_every_arm_answers_the_same_rows(full: api.Result) -> None:
    v = full.verdict
    expected = [
        "zero_shot",
        "few_shot",
        "nearest",
        "retrieval",
        "tuned_retrieval",
        "constant",
        "classical",
        "tuned_short",
        "tuned",
    ]
    assert list(v["arms"]) == expected
    for name in expected:
        lines = [json.loads(x) for x in (full.path / "scores" / f"{name}.jsonl").read_text().splitlines()]
        assert len(lines) == v["n"]
        assert v["arms"][name]["score"] == pytest.approx(sum(x["score"] for x in lines) / v["n"])
    assert v["comparator"]["name"] not in ("classical", "tuned_short", "tuned_retrieval")
    assert v["comparator"]["chosen_on"] == "dev"
    assert v["rerun"] == {"rows": 16, "changed": 0, "floor": 0.0}, (
        "greedy decoding on a CPU gives the same answer twice"
    )
    shown = (full.path / "scores" / "retrieval.jsonl").read_text()
    assert "Ice and snow are cold." in shown
    short = json.loads((full.path / "scores" / "tuned_short.jsonl").read_text().splitlines()[0])
    assert [m["role"] for m in short["messages"]] == ["user"]


def test_the_protocol_is_fixed_before_training(full: api.Result) -> None:
    events = [json.loads(x) for x in (full.path / "events.jsonl").read_text().splitlines()]
    names = [e["event"] for e in events]
    assert names.index("plan_finished") < names.index("train_started")
    assert read(full.path, "receipt")["hashes"]["protocol"] == full.verdict["protocol"]
    assert (full.path / "protocol.json").stat().st_mtime <= (full.path / "metrics.jsonl").stat().st_mtime
    # The arms read it once; branches (cleaned, half of the rows, distilled), a teacher and both exports do too; each
    # read is counted.
    assert full.verdict["test_reads"] == names.count("test_read") == 7
    assert "have been read 7 times" in full.report.read_text()
    assert {*full.verdict} >= {
        "forgetting",
        "cost",
        "learning_curve",
        "cleaning",
        "crossfit",
        "mitigation",
        "prompt_distillation",
        "calibration",
    }


def test_labels_without_dev_rows_have_a_verdict(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    """Nothing can be calibrated then, and no scale of the update chosen."""
    words = ["prove", str(chat_rows(40, label=True)), "--model", str(model_folder("llama")), *FLAGS]
    words += ["split.dev=0", "forget.apply_best_scale=true", "--name", "r"]
    done = cli(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    verdict = read(tmp_path / "runs" / "r", "verdict")
    assert (verdict["dev_rows"], verdict.get("calibration")) == (0, None)
