"""Threads beside other processes: fewer while others use the cores, all again afterwards, never back and forth."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from build import process

from tunewright.system import crowding

# A copy of the module: a server that other tests use may be watching at the same time, and would call what is replaced.
spec = importlib.util.find_spec(crowding.__name__)
assert spec is not None
assert spec.loader is not None
spec.loader.exec_module(crowding := importlib.util.module_from_spec(spec))
Crowd, Usage = crowding.Crowd, crowding.Usage


def crowd(planned: int, threads: int, cores: int | None = None) -> Crowd:
    return Crowd(planned, cores or planned, threads, Usage(0.0, 0.0, 0.0))


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


@pytest.mark.parametrize(
    ("now", "others", "then"), [(4, 8.0, 4), (4, 60.2, 4), (4, 61.0, 3), (3, 60.8, 3), (3, 59.0, 4), (2, 64.0, 1)]
)
def test_threads_that_fit_beside_the_others_stay(now: int, others: float, then: int) -> None:
    """A plan for 4 threads on a machine with 64 cores."""
    assert crowding.threads(crowd(4, now, 64), others) == then


def test_what_others_use_is_measured_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    start = crowd(2, 2)
    monkeypatch.setattr(crowding, "usage", lambda: Usage(clock=1.0, cores=1.9, own=1.0))
    after = crowding.adapted(start)
    assert after == Crowd(2, 2, 1, Usage(1.0, 1.9, 1.0))
    monkeypatch.setattr(crowding, "usage", lambda: Usage(clock=2.0, cores=2.9, own=2.0))
    assert crowding.adapted(after).threads == 2
    just = Crowd(2, 2, 1, Usage(time.monotonic(), 0.0, 0.0))
    assert crowding.adapted(just) is just, "nothing can be measured in so short a time"
    monkeypatch.setattr(crowding, "usage", lambda: None)
    assert crowding.adapted(start) is start, "where the system does not say, the threads stay"


@pytest.mark.skipif(crowding.usage() is None, reason="the system does not say what processes use")
def test_a_busy_process_is_seen() -> None:
    """A real one, from the kernel's own counts."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    try:
        time.sleep(0.2)
        before = crowding.usage()
        time.sleep(1.0)
        now = crowding.usage()
        assert before is not None
        assert now is not None
        assert crowding.used_by_others(before, now) > 0.3
    finally:
        other.kill()
        other.wait()


def test_threads_are_restored() -> None:
    before = torch.get_num_threads()
    with crowding.restored():
        crowding.use(before + 1)
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("was", "others", "then"), [(False, 0.2, False), (False, 0.3, True), (True, 0.2, True), (True, 0.1, False)]
)
def test_crowded_until_others_use_almost_nothing(was: bool, others: float, then: bool) -> None:
    assert crowding.is_crowded(was, others) is then


SECOND_TEAM = """
import os, sys, time, torch
from tunewright.system import crowding, machine

def tasks(): return len(os.listdir("/proc/self/task"))

machine.cores = lambda: 3
torch.set_num_threads(int(sys.argv[1]))
torch.ones(1 << 20).add_(1)
before = tasks()
over = crowding.start_second_team()
during = tasks()
over.set()
end = time.monotonic() + 10
while tasks() > before and time.monotonic() < end: time.sleep(0.01)
print(before, during, tasks())
"""


@pytest.mark.skipif(crowding.usage() is None, reason="the system does not say what processes use")
@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_second_team_of_threads_exists_only_meanwhile(tmp_path: Path, threads: str) -> None:
    """More OpenMP threads than cores, also if torch uses one at present: so waiting threads sleep."""
    done = process("-c", SECOND_TEAM, threads, cwd=tmp_path, OMP_NUM_THREADS="2")
    before, during, after = map(int, done.stdout.split())
    assert during >= before + 3, done.stderr
    assert after == before


@pytest.mark.parametrize("last", [[], [1.0]])
def test_the_watch_starts_a_second_team_while_others_use_the_cores(
    monkeypatch: pytest.MonkeyPatch, last: list[float]
) -> None:
    seen: list[str] = []
    loads = [0.0, 1.0, 1.0, 0.2, 0.0, 0.0, *last]

    class End(threading.Event):
        def set(self) -> None:
            seen.append("end")

    class Over(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            return not loads

    def start() -> threading.Event:
        seen.append("start")
        return End()

    monkeypatch.setattr(crowding, "usage", lambda: Usage(0.0, 0.0, 0.0))
    monkeypatch.setattr(crowding, "used_by_others", lambda before, now: loads.pop(0))
    monkeypatch.setattr(crowding, "start_second_team", start)
    crowding._watch(Over())
    assert seen[: 2 + len(last)] == ["start", "end", "start"][: 2 + len(last)]
    assert seen[-1] == "end", "nothing is left after the command"


def test_decoding_begins_with_what_was_seen_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowding.machine, "cores", lambda: 4)
    monkeypatch.setattr(crowding, "_watch", lambda over: None)
    monkeypatch.setattr(crowding, "_others", None)
    assert crowding.now(4).threads == 4
    monkeypatch.setattr(crowding, "_others", 1.7)
    assert crowding.now(4).threads == 2
    with crowding.giving_way():
        pass
    assert crowding._others is None, "what was seen is not known for long"


def test_the_watch_ends_with_the_block() -> None:
    before = set(threading.enumerate())
    with crowding.giving_way():
        (watch,) = [t for t in set(threading.enumerate()) - before if t.name == "giving_way"]
    assert not watch.is_alive()
