"""Whole runs on tiny models: tasks, architectures, full fine-tuning, raw text."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from build import QUICK, Folder, Rows, read
from stage_settings import LATE

from tunewright import api
from tunewright.core.config import Config, fields, load
from tunewright.model import loading


def test_a_learnable_task_is_better(labelled: api.Result) -> None:
    v = labelled.verdict
    assert v["task"] == "label"
    assert v["metric"] == "accuracy"
    assert v["verdict"] == "BETTER", v
    assert v["tuned"] > 0.95


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text"])
def test_other_architectures_run_end_to_end(kind: str, tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    run = api.run(chat_rows(), model=str(model_folder(kind)), name="x", root=tmp_path, **QUICK)
    assert all(x["largest_difference"] < 1e-3 for x in json.loads((run.path / "export.json").read_text()))
    assert json.loads((run.path / "plan.json").read_text())["layout"] == "shared"


def test_full_fine_tuning_runs_end_to_end(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    given = {k: v for k, v in QUICK.items() if not k.startswith(("adapter", "train__dtype"))}
    run = api.run(
        chat_rows(), model=str(model_folder("llama")), name="full", root=tmp_path, adapter__kind="none", **given
    )
    assert not run.adapter.exists()
    base = loading.load(model_folder("llama"), torch.float32).module.state_dict()
    tuned = loading.load(run.path / "merged", torch.float32).module.state_dict()
    assert all(not torch.equal(base[k], tuned[k]) for k in base)


def test_raw_documents_run_end_to_end(tmp_path: Path, model_folder: Folder) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    for i in range(26):
        (folder / f"page-{i}.md").write_text(
            f"# Page {i}\n" + " ".join(f"{chr(97 + i)}{(i * j) % 17}{chr(97 + j % 26)}" for j in range(60))
        )
    run = api.run(
        folder,
        model=str(model_folder("llama")),
        name="pages",
        root=tmp_path,
        train__steps=8,
        train__max_length=64,
        split__dev=0.0,
        train__lr=0.01,
        train__dtype="float32",
        threads=1,
    )
    v = run.verdict
    assert (run.path / "report.html").exists()
    assert v["metric"] == "bits_per_byte"
    assert set(v["arms"]) == {"base", "tuned"}
    assert v["tuned"] < v["arms"]["base"]["score"]
    assert v["difference"] > 0


def test_a_run_records_every_setting(full: api.Result) -> None:
    """So that another version's defaults cannot change a resumed run."""
    text = (full.path / "config.yaml").read_text()
    config = load(full.path / "config.yaml")
    assert config == Config.model_validate(config.model_dump())
    unread = {f"adapter.{name}" for name in config.adapter.unread}  # which `load` would reject
    for key, *_ in fields():
        assert key in unread or f"{key.rsplit('.', 1)[-1]}:" in text, key


def test_settings_of_single_stages_take_effect(full: api.Result) -> None:
    for key, holds in LATE.items():
        assert holds(lambda name: read(full.path, name)), key


def test_out_of_memory_is_one_of_our_errors(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    """When training begins, the address space is limited, and the rest of it is allocated."""
    code = """
import resource, sys, torch
from tunewright.cli import main
from tunewright.train import loop
train = loop.train
def narrow(*args, **more):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 4_000_000,) * 2)
    taken = []
    try:
        while True:
            taken.append(torch.ones(1 << 16))
    except RuntimeError:
        del taken[-2:]
    return train(*args, **more)
loop.train = narrow
main.main()
"""
    flags = ["train.steps=3", "train.batch_size=40", "train.tokens_per_pass=8192", "train.dtype=float32", "threads=1"]
    words = ["train", str(chat_rows()), "--name", "r", "--model", str(model_folder("llama")), *flags]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert re.search(r"error\[TRAIN_MEMORY\] \S*runs/r: .* GB\. Fix: .*train.tokens_per_pass", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
