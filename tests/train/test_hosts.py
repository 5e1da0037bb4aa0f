"""A run trained by two hosts, with processes, a host and the cable between them lost on the way."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import hosts
import pytest
from build import FLAGS, Folder, cli, read, read_lines, write_chat_rows

from tunewright.core.run_folder import Run, sha256

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hosts.possible(), reason="needs root and network namespaces")]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}


@pytest.fixture
def planned(tmp_path: Path, model_folder: Folder) -> tuple[Run, str]:
    """A planned run, and the hash of the weights that one process trains."""
    words = [str(write_chat_rows(tmp_path / "rows.jsonl", 60)), "--model", str(model_folder("llama")), *FLAGS]
    words += ["train.steps=40", "train.tokens_per_pass=64", "checkpoint.every=1"]
    for name in ("alone", "hosts"):
        plan = cli("plan", *words, "--name", name, cwd=tmp_path)
        assert plan.returncode == 0, plan.stderr
    assert cli("train", "runs/alone", cwd=tmp_path).returncode == 0
    alone, run = (Run(tmp_path / "runs" / name) for name in ("alone", "hosts"))
    return run, sha256(alone.weights)


def step_of(run: Run) -> int:
    return len(read_lines(run.path, "metrics")) if run.metrics.exists() else 0


def wait_for(run: Run, step: int, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while step_of(run) < step and time.monotonic() < end:
        time.sleep(0.02)
    assert step_of(run) >= step


def test_hosts_and_processes_that_are_killed_change_no_bit(planned: tuple[Run, str]) -> None:
    run, straight = planned
    draw = random.Random(0)
    with hosts.two() as both:
        for kill in range(3):
            started = hosts.torchrun(both, run.path, 29500 + kill, **ENVIRONMENT)
            wait_for(run, 5 * (kill + 1))
            victim = draw.choice(both)
            for process in victim.processes()[-1:] if kill == 0 else victim.processes():
                os.kill(process, signal.SIGKILL)
            for p in started:
                p.communicate(timeout=120)
            assert not run.training.exists()
        started = hosts.torchrun(both, run.path, 29510, **ENVIRONMENT)
        outputs = [p.communicate(timeout=300)[0] for p in started]
        assert [p.returncode for p in started] == [0, 0], outputs
    assert sha256(run.weights) == straight
    assert [line["step"] for line in read_lines(run.path, "metrics")] == list(range(41))


def test_a_lost_cable_is_an_error_in_time(planned: tuple[Run, str]) -> None:
    run, straight = planned
    with hosts.two() as both:
        started = hosts.torchrun(both, run.path, 29520, **ENVIRONMENT, TUNEWRIGHT_RANKS_TIMEOUT="10")
        wait_for(run, 5)
        both[1].set_cable("down")
        before = time.monotonic()
        output = started[0].communicate(timeout=120)[0]
        assert "RANKS_LOST" in output, output[-3000:]
        assert time.monotonic() - before < 60
        both[1].set_cable("up")
        for p in started:
            p.communicate(timeout=120)
        outputs = [p.communicate(timeout=300)[0] for p in hosts.torchrun(both, run.path, 29521, **ENVIRONMENT)]
        assert run.training.exists(), outputs
    assert sha256(run.weights) == straight


def test_a_sweep_over_two_hosts_by_ray_is_that_of_one_process(tmp_path: Path, model_folder: Folder) -> None:
    pytest.importorskip("ray")
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1", "--disable-usage-stats"]
    words = ["sweep", str(write_chat_rows(tmp_path / "rows.jsonl", 60)), "--model", str(model_folder("llama")), *FLAGS]
    words += ["train.lr=1e-6,3e-2", "prove.evidence=plain", "export.to=[adapter]", "export.rows=0"]
    assert cli(*words, "--name", "here", cwd=tmp_path).returncode == 0
    token = {**ENVIRONMENT, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    with hosts.two() as (first, second):
        head = first.start([*ray, "--head", "--node-ip-address", first.address, "--port", "6379"], tmp_path, **token)
        time.sleep(15)
        other = second.start(
            [*ray, "--address", f"{first.address}:6379", "--node-ip-address", second.address], tmp_path, **token
        )
        time.sleep(15)
        command = [sys.executable, "-m", "tunewright", *words, "--name", "ray", "--on", "ray"]
        driver = first.start(command, tmp_path, **token, RAY_ADDRESS=f"{first.address}:6379")
        output = driver.communicate(timeout=900)[0]
        assert driver.returncode == 0, output[-3000:]
    for node in (head, other):
        node.communicate()  # killed with their hosts
    here, there = (read(tmp_path / "runs" / name, "sweep") for name in ("here", "ray"))
    assert {**here, "seconds": 0} == {**there, "seconds": 0}
    weights = {sha256(Run(tmp_path / "runs" / name).weights) for name in ("here", "ray")}
    assert len(weights) == 1
