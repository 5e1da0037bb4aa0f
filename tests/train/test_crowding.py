"""Threads beside other processes: fewer while others use the cores, all again afterwards, never back and forth."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch

from tunewright.train import crowding
from tunewright.train.crowding import Crowd, Usage


def crowd(cores: int, threads: int) -> Crowd:
    return Crowd(cores, threads, Usage(0.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("cores", "now", "others", "then"),
    [
        (2, 2, 0.0, 2),
        (2, 2, 0.4, 2),
        (2, 2, 1.0, 1),
        (2, 2, 2.0, 1),
        (2, 1, 1.0, 1),
        (2, 1, 0.5, 1),
        (2, 1, 0.2, 2),
        (16, 16, 0.9, 15),
        (16, 15, 1.4, 15),
        (16, 15, 6.2, 10),
        (16, 4, 30.0, 1),
        (1, 1, 1.0, 1),
    ],
)
def test_as_many_threads_as_cores_that_others_leave(cores: int, now: int, others: float, then: int) -> None:
    assert crowding.threads(crowd(cores, now), others) == then


def test_what_others_use_is_measured_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    start = crowd(2, 2)
    monkeypatch.setattr(crowding, "usage", lambda: Usage(clock=1.0, cores=1.9, own=1.0))
    after = crowding.after_step(start)
    assert (after.threads, after.others) == (1, pytest.approx(0.9))
    monkeypatch.setattr(crowding, "usage", lambda: Usage(clock=2.0, cores=2.9, own=2.0))
    assert crowding.after_step(after).threads == 2
    monkeypatch.setattr(crowding, "usage", lambda: Usage(clock=1.1, cores=99.0, own=1.0))
    assert crowding.after_step(after) is after, "a tenth of a second is too short to measure"
    monkeypatch.setattr(crowding, "usage", lambda: None)
    assert crowding.after_step(start) is start, "where the system does not say, the threads stay"


@pytest.mark.skipif(crowding.usage() is None, reason="the system does not say what processes use")
def test_a_busy_process_is_seen() -> None:
    """A real one, from the kernel's own counts."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    try:
        time.sleep(0.2)
        before = crowding.alone(2)
        time.sleep(1.0)
        assert crowding.after_step(before).others > 0.3
    finally:
        other.kill()
        other.wait()


def test_threads_are_restored() -> None:
    before = torch.get_num_threads()
    with crowding.restored():
        crowding.use(Crowd(8, before + 1, None))
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
