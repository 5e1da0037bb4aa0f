"""Runs that were stopped and are resumed, by the same command, elsewhere, or with changed inputs."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from build import FLAGS, Folder, Rows, cli, copied, flip, read, writer

from tunewright import api
from tunewright.core.run_folder import Run


def test_an_interrupted_run_says_how_to_resume_and_ends_equal(
    tmp_path: Path, chat_rows: Rows, model_folder: Folder
) -> None:
    """SIGINT during training, then the same command on the run folder: the weights are as if nothing had happened."""
    flags = [
        "--model",
        str(model_folder("llama")),
        "train.steps=40",
        "train.batch_size=4",
        "adapter.rank=4",
        "adapter.dropout=0.1",
        "train.eval_every=10",
        "train.patience=0",
        "threads=1",
        "train.dtype=float32",
    ]
    data = str(chat_rows())
    assert cli("train", data, "--name", "straight", *flags, cwd=tmp_path).returncode == 0
    stopped = subprocess.Popen(
        [sys.executable, "-m", "tunewright", "train", data, "--name", "stopped", *flags],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    metrics = tmp_path / "runs" / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("\n") > 4):
        time.sleep(0.01)
    stopped.send_signal(signal.SIGINT)
    _, stderr = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, stderr
    assert "RUN_INTERRUPTED" in stderr
    assert "tunewright run" in stderr
    assert not (tmp_path / "runs" / "stopped" / "training.json").exists()
    assert cli("train", "runs/stopped", cwd=tmp_path).returncode == 0
    finals = [
        (tmp_path / "runs" / n / "checkpoints" / "final.safetensors").read_bytes() for n in ("straight", "stopped")
    ]
    assert finals[0] == finals[1]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_stopped_while_proving_it_resumes_to_the_same_verdict(
    number: int, tmp_path: Path, proved: Path, model_folder: Folder
) -> None:
    arguments = ["prove", str(proved / "rows.jsonl"), "--model", str(model_folder("llama")), *FLAGS, "--name", "r"]
    stopped = subprocess.Popen(
        [sys.executable, "-m", "tunewright", *arguments],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    run = tmp_path / "runs" / "r"
    events = run / "events.jsonl"
    while stopped.poll() is None and not (events.exists() and "prove_started" in events.read_text()):
        time.sleep(0.005)
    stopped.send_signal(number)
    _, stderr = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, stderr
    assert re.search(r"error\[RUN_INTERRUPTED\].*during `prove`.*Fix: `tunewright run", stderr), stderr
    assert "Traceback" not in stderr
    assert not (run / "verdict.json").exists()
    assert cli("prove", "r", cwd=tmp_path).returncode == 0
    first, second = ((folder / "verdict.json").read_text() for folder in (proved / "runs" / "r", run))
    drop = re.compile(r'"(?:seconds|test_reads|asked_again)":[^}]*')
    assert drop.sub("", first) == drop.sub("", second)


def test_resuming_with_changed_data_is_refused(tmp_path: Path, proved: Path) -> None:
    copied(proved, tmp_path)
    data = tmp_path / "rows.jsonl"
    data.write_text(data.read_text().replace("RED", "Red"))
    done = cli("run", "r", cwd=tmp_path)
    assert done.returncode == 2
    assert "RESUME_MISMATCH" in done.stderr
    assert "data was" in done.stderr


def test_resuming_with_changed_documents_is_refused(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    """Half of the answers would be from the old ones."""
    documents = tmp_path / "notes"
    documents.mkdir()
    (documents / "a.txt").write_text("The cup is on the table.")
    flags = ["--model", str(model_folder("llama")), *FLAGS, f"prove.documents={documents}", "--name", "r"]
    assert cli("train", str(chat_rows()), *flags, cwd=tmp_path).returncode == 0
    (documents / "a.txt").write_text("The cup is on the shelf.")
    done = cli("prove", "r", cwd=tmp_path)
    assert done.returncode == 2
    assert "RESUME_MISMATCH" in done.stderr
    assert "documents was" in done.stderr


def test_a_changed_protocol_is_refused_field_by_field(tmp_path: Path, proved: Path) -> None:
    file = copied(proved, tmp_path) / "config.yaml"
    file.write_text(file.read_text().replace("margin: 0.02", "margin: 0.2"))
    done = cli("train", "r", cwd=tmp_path)
    assert done.returncode == 2
    assert "RESUME_MISMATCH" in done.stderr
    assert "margin was 0.02, is 0.2" in done.stderr


def test_resuming_elsewhere_warns(tmp_path: Path, proved: Path) -> None:
    run = copied(proved, tmp_path)
    (run / "training.json").unlink()
    receipt = read(run, "receipt")
    receipt["versions"]["torch"], receipt["machine"]["processor"] = "1.0", "an abacus"
    (run / "receipt.json").write_text(json.dumps(receipt))
    done = cli("train", "r", cwd=tmp_path)
    assert done.returncode == 0
    assert "torch was 1.0" in done.stderr
    assert "processor was an abacus" in done.stderr
    assert (run / "training.json").exists()


def test_damaged_final_weights_are_not_used(tmp_path: Path, proved: Path) -> None:
    run = Run(copied(proved, tmp_path))
    run.verdict.unlink()
    shutil.rmtree(run.scores)
    before = run.weights.read_bytes()
    flip(run.weights)
    done = cli("prove", "r", cwd=tmp_path)
    assert done.returncode == 2
    assert "RUN_DAMAGED" in done.stderr
    assert "delete runs/r/training.json" in done.stderr
    run.training.unlink()  # as the message suggests
    assert cli("train", "r", cwd=tmp_path).returncode == 0
    assert run.weights.read_bytes() == before


def test_a_second_process_on_the_same_run_is_rejected(tmp_path: Path, proved: Path, model_folder: Folder) -> None:
    first = writer(copied(proved, tmp_path))
    try:
        done = cli("run", "r", cwd=tmp_path)
        assert done.returncode == 2
        assert "RUN_LOCKED" in done.stderr
        again = cli("plan", "rows.jsonl", "--name", "r", "--model", str(model_folder("llama")), cwd=tmp_path)
        assert "RUN_EXISTS" in again.stderr
    finally:
        first.kill()
        first.communicate()


def test_a_lost_stage_is_repeated_from_the_other_files(full: api.Result, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(full.path, run)
    before, branch = full.verdict, run / "branches" / "cleaned" / "training.json"
    trained = branch.stat().st_mtime
    for name in ("verdict", "cleaning", "cost"):
        (run / f"{name}.json").unlink()
    done = cli("run", str(run), "--gate", cwd=tmp_path)
    assert done.returncode == (0 if before["verdict"] == "BETTER" else 3), done.stderr
    again = read(run, "verdict")
    assert again["test_reads"] > before["test_reads"]
    assert again["arms"] == before["arms"]
    assert branch.stat().st_mtime == trained
