"""The main job through the command line."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from build import FLAGS, Folder, Rows, cli, process, read


def test_the_main_job(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    words = ("run", str(chat_rows()), "--model", str(model_folder("llama")), "--name", "one", *FLAGS)
    done = process("-m", "tunewright", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.match(r"(BETTER|WORSE|PRACTICALLY EQUAL|CANNOT TELL): ", done.stdout)
    run = tmp_path / "runs" / "one"
    for name in (
        "config.yaml",
        "plan.json",
        "receipt.json",
        "metrics.jsonl",
        "events.jsonl",
        "verdict.json",
        "export.json",
        "report.html",
        "adapter/adapter_model.safetensors",
        "adapter/README.md",
        "merged/model.safetensors",
        "merged/README.md",
        "data/audit.json",
        "scores/tuned.jsonl",
        "scores/zero_shot.jsonl",
        "scores/few_shot.jsonl",
        "scores/nearest.jsonl",
        "scores/dev/zero_shot-wording2.jsonl",
        "protocol.json",
    ):
        assert (run / name).is_file(), name
    verdict = json.loads((run / "verdict.json").read_text())
    assert set(verdict["arms"]) == {"zero_shot", "few_shot", "nearest", "constant", "classical", "tuned"}
    lines = [json.loads(x) for x in (run / "scores" / "tuned.jsonl").read_text().splitlines()]
    assert verdict["tuned"] == pytest.approx(sum(x["score"] for x in lines) / len(lines))
    assert (
        verdict["n"]
        == len(lines)
        == sum('"side": "test"' in x for x in (run / "data" / "split.jsonl").read_text().splitlines())
    )
    exported = json.loads((run / "export.json").read_text())
    assert {x["kind"] for x in exported} == {"adapter", "merged"}
    assert all(x["largest_difference"] < 1e-4 and x["same_texts"] == x["prompts"] for x in exported)
    page = (run / "report.html").read_text()
    assert not re.search(r'(?:src|href)="https?:|<script|@import|url\((?!#)', page), "the page is self-contained"
    assert verdict["verdict"] in page
    assert (run.stat().st_mode & 0o777) == 0o711, "others may pass through, not list"
    again = cli("run", str(run), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[0] == done.stdout.splitlines()[0]
    listed = json.loads(cli("runs", "list", "--json", cwd=tmp_path).stdout)
    assert [(r["name"], r["stage"], r["verdict"]) for r in listed] == [("one", "reported", verdict["verdict"])]
    assert cli("run", str(chat_rows()), "--name", "one", *FLAGS, cwd=tmp_path).returncode == 2
    answered = cli("chat", str(run), "item 3: red", "--max-new-tokens", "5", cwd=tmp_path)
    assert answered.returncode == 0, answered.stderr
    open_to_all = {p for p in run.rglob("*") if p.stat().st_mode & 0o077}
    exports = {p for kind in ("adapter", "merged") for p in [run / kind, *(run / kind).rglob("*")]}
    assert open_to_all == exports, "rows and answers are the owner's alone"
    assert all(p.stat().st_mode & 0o777 == (0o755 if p.is_dir() else 0o644) for p in exports)
    logged = [done.stderr, answered.stderr, *((run / f"{name}.jsonl").read_text() for name in ("events", "metrics"))]
    assert not any(" by the " in text for text in logged), "a row's text in a log"


def test_runs_at_once_on_one_machine_end_as_each_would_alone(
    tmp_path: Path, chat_rows: Rows, model_folder: Folder, proved: Path
) -> None:
    """Started in the same second, without names, they take different folders."""
    words = ("prove", str(chat_rows()), "--model", str(model_folder("llama")), *FLAGS)
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(lambda _: process("-m", "tunewright", *words, cwd=tmp_path), range(2)))
    assert [done.returncode for done in ended] == [0, 0], [done.stderr for done in ended]
    runs = sorted((tmp_path / "runs").iterdir())
    assert len(runs) == 2
    for run in runs:
        assert result(run) == result(proved / "runs" / "r")


def result(run: Path) -> list[object]:
    """The hash of the trained weights, and the score of every arm."""
    arms = read(run, "verdict")["arms"]
    return [read(run, "training")["weights_sha256"], {name: arm["score"] for name, arm in arms.items()}]
