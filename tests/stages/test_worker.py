"""Training in a separate process gives the same run folder as a single process; the same command continues the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from build import FLAGS, Folder, Rows, cli, process, read, read_lines

from tunewright.core.run_folder import Run, sha256


def kept(run: Path) -> dict[str, object]:
    """The training results in a run folder, without times and memory."""
    training = {k: v for k, v in read(run, "training").items() if k not in ("seconds", "peak_gb")}
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(run, "metrics")]
    events = [e["event"] for e in read_lines(run, "events")]
    return {"training": training, "metrics": lines, "events": events, "files": sorted(p.name for p in run.iterdir())}


def test_a_process_of_its_own_trains_the_same(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    words = ["train", str(chat_rows()), "--model", str(model_folder("llama")), *FLAGS]
    assert cli(*words, "--name", "one", cwd=tmp_path).returncode == 0
    done = cli(*words, "--name", "two", "--separate", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one, two = (tmp_path / "runs" / name for name in ("one", "two"))
    assert kept(one) == kept(two)
    assert sha256(Run(one).weights) == sha256(Run(two).weights)


def test_the_workers_error_is_the_commands_error(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    words = ["train", str(chat_rows()), "--model", str(model_folder("llama")), *FLAGS, "--separate", "train.lr=1"]
    done = cli(*words, "train.max_grad_norm=1e9", "train.steps=200", "--name", "wild", cwd=tmp_path)
    if done.returncode:  # a learning rate of 1 need not diverge; if it does, the error is one line
        assert "error[TRAIN_NOT_FINITE]" in done.stderr
    plan = cli("plan", *words[1:-2], "--name", "planned", cwd=tmp_path)
    assert plan.returncode == 0, plan.stderr
    alone = process("-m", "tunewright.stages.worker", "runs/planned", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    assert (tmp_path / "runs" / "planned" / "training.json").exists()
    again = cli("train", "runs/planned", cwd=tmp_path)
    assert again.returncode == 0, again.stderr


def test_a_signal_to_the_parent_saves_in_the_worker(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    words = ["train", str(chat_rows()), "--model", str(model_folder("llama")), *FLAGS, "train.steps=4000"]
    words += ["--separate", "--name", "r"]
    stopped = subprocess.Popen(
        [sys.executable, "-m", "tunewright", *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    metrics = tmp_path / "runs" / "r" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("\n") > 4):
        time.sleep(0.02)
    stopped.send_signal(signal.SIGTERM)
    _, stderr = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, stderr
    assert "progress is saved" in stderr
    assert list((tmp_path / "runs" / "r" / "checkpoints").glob("step-*"))
    assert not list((tmp_path / "runs" / "r").glob(".owner"))


def test_the_same_command_continues_the_same_run(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    """A cluster requeues the same command line. Another config under that name is an error with the differences."""
    words = [str(chat_rows()), "--model", str(model_folder("llama")), *FLAGS, "--name", "r"]
    assert cli("plan", *words, cwd=tmp_path).returncode == 0
    plan = (tmp_path / "runs" / "r" / "plan.json").read_bytes()
    done = cli("train", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "r" / "plan.json").read_bytes() == plan
    other = cli("train", *words, "train.lr=0.5", cwd=tmp_path)
    assert other.returncode == 2
    assert "RUN_EXISTS" in other.stderr
    assert "train.lr is auto there and 0.5 here" in other.stderr
    assert os.listdir(tmp_path / "runs") == ["r"]


@pytest.mark.parametrize("free", [0.2, 3.0, 200.0])
def test_what_is_free_at_the_moment_changes_no_number_of_the_plan(
    free: float, tmp_path: Path, chat_rows: Rows, model_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last bits of an answer depend on the decode batch, so other processes must not change its size."""
    from tunewright.system import machine

    measured = machine.measure(1)
    numbers = []
    for gb in (measured.memory_gb, free):
        box = machine.Machine(**{**vars(measured), "free_gb": gb})
        monkeypatch.setattr(machine, "measure", lambda _=None, box=box: box)
        name = f"with-{gb:g}"
        words = ["plan", str(chat_rows()), "--model", str(model_folder("llama")), "--name", name, *FLAGS]
        assert cli(*words, cwd=tmp_path).returncode == 0
        numbers.append({k: v for k, v in read(tmp_path / "runs" / name, "plan").items() if k != "estimate"})
    assert numbers[0] == numbers[1]
    assert {"decode_batch_size", "max_new_tokens", "tokens_per_pass"} <= set(numbers[0])
