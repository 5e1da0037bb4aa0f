"""Threads beside other processes: fewer while others use the cores, all again afterwards, never back and forth."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from build import process

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
    after = crowding.adapted(start)
    assert (after.threads, after.others) == (1, pytest.approx(0.9))
    monkeypatch.setattr(crowding, "usage", lambda: Usage(clock=2.0, cores=2.9, own=2.0))
    assert crowding.adapted(after).threads == 2
    monkeypatch.setattr(crowding, "usage", lambda: Usage(clock=1.1, cores=99.0, own=1.0))
    assert crowding.adapted(after) is after, "a tenth of a second is too short to measure"
    monkeypatch.setattr(crowding, "usage", lambda: None)
    assert crowding.adapted(start) is start, "where the system does not say, the threads stay"


@pytest.mark.skipif(crowding.usage() is None, reason="the system does not say what processes use")
def test_a_busy_process_is_seen() -> None:
    """A real one, from the kernel's own counts."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    try:
        time.sleep(0.2)
        before = crowding.alone(2)
        time.sleep(1.0)
        assert crowding.adapted(before).others > 0.3
    finally:
        other.kill()
        other.wait()


def test_threads_are_restored() -> None:
    before = torch.get_num_threads()
    with crowding.restored():
        crowding.use(Crowd(8, before + 1, None))
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("was", "others", "then"), [(False, 0.2, False), (False, 0.3, True), (True, 0.2, True), (True, 0.1, False)]
)
def test_crowded_until_others_use_almost_nothing(was: bool, others: float, then: bool) -> None:
    assert crowding.is_crowded(was, others) is then


SECOND_TEAM = """
import os, time, torch
from tunewright.train import crowding

def tasks(): return len(os.listdir("/proc/self/task"))

torch.set_num_threads(2)
torch.ones(1 << 20).add_(1)
before = tasks()
over = crowding.short_waits()
during = tasks()
over.set()
end = time.monotonic() + 10
while tasks() > before and time.monotonic() < end: time.sleep(0.01)
print(before, during, tasks())
"""


@pytest.mark.skipif(crowding.usage() is None, reason="the system does not say what processes use")
def test_a_second_team_of_threads_exists_only_meanwhile(tmp_path: Path) -> None:
    """More OpenMP threads than cores: that is what makes waiting threads sleep."""
    done = process("-c", SECOND_TEAM, cwd=tmp_path, OMP_NUM_THREADS="2")
    before, during, after = map(int, done.stdout.split())
    assert during >= before + 2, done.stderr
    assert after == before


def test_the_watch_starts_a_second_team_while_others_use_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    class Over(Exception):
        """Ends the endless watch."""

    seen: list[str] = []
    loads = iter([0.0, 1.0, 1.0, 0.2, 0.0, 0.0])

    def others(before: Usage, now: Usage) -> float:
        try:
            return next(loads)
        except StopIteration:
            raise Over from None

    class Event(threading.Event):
        def set(self) -> None:
            seen.append("end")

    def short_waits() -> threading.Event:
        seen.append("start")
        return Event()

    monkeypatch.setattr(crowding, "POLL", 0.0)
    monkeypatch.setattr(crowding, "usage", lambda: Usage(0.0, 0.0, 0.0))
    monkeypatch.setattr(crowding, "used_by_others", others)
    monkeypatch.setattr(crowding, "short_waits", short_waits)
    with pytest.raises(Over):
        crowding._watch()
    assert seen == ["start", "end"]
