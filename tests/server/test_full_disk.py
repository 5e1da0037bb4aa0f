"""A job whose disk is full, on a small file system of its own."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from build import write_chat_rows
from server_running import SHORT_JOB
from torture_server import COMPLETED, Process

MB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def wait(server: Process, job_id: str, condition: Callable[[Any], bool]) -> Any:
    for _ in range(300):
        job = server.get(f"/v1/fine_tuning/jobs/{job_id}")
        if condition(job):
            return job
        time.sleep(0.2)
    raise AssertionError((job, server.log.read_text()[-3000:]))


@pytest.mark.slow
def test_a_job_whose_disk_is_full_is_paused_and_continues(
    small_disk: Path, tmp_path: Path, model_folder: Callable[[str], Path]
) -> None:
    server = Process(small_disk / "home", model_folder("llama"))
    try:
        rows = write_chat_rows(tmp_path / "rows.jsonl", 60).read_bytes()
        data, files = {"purpose": "fine-tune"}, {"file": ("rows.jsonl", rows)}
        file = server.http.post("/v1/files", data=data, files=files).json()["id"]
        settings = {**SHORT_JOB, "train.steps": 120, "checkpoint.every": 10, "train.eval_every": 60}
        body = {"model": server.model.name, "training_file": file, "tunewright": settings}
        job_id = server.http.post("/v1/fine_tuning/jobs", json=body).json()["id"]
        metrics = small_disk / "home" / "runs" / job_id / "metrics.jsonl"
        wait(server, job_id, lambda _: metrics.exists() and metrics.read_text().count("\n") > 20)
        ballast = small_disk / "ballast"
        with open(ballast, "wb") as out:
            out.write(b"x" * (os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize - 8192))
        upload = server.http.post("/v1/files", data=data, files={"file": ("more.jsonl", b"x" * MB)})
        assert upload.status_code == 507
        time.sleep(4)
        assert server.get(f"/v1/fine_tuning/jobs/{job_id}")["status"] in ("running", "queued")
        ballast.unlink()
        paused = wait(server, job_id, lambda job: job["tunewright"]["paused"])
        assert paused["status"] == "queued"
        (event,) = [e for e in server.every(f"/v1/fine_tuning/jobs/{job_id}/events") if e["level"] == "warn"]
        assert "make room, then resume" in event["message"]
        assert "No space left" in event["message"]
        server.http.post(f"/v1/fine_tuning/jobs/{job_id}/resume")
        done = wait(server, job_id, lambda job: job["status"] not in ("queued", "running"))
        assert done["status"] == "succeeded", done
        messages = [e["message"] for e in server.every(f"/v1/fine_tuning/jobs/{job_id}/events")]
        assert messages.count(COMPLETED) == 1
        assert len({m for m in messages if m.startswith("Step")}) == 120
    finally:
        server.close()
