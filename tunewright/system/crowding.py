"""Threads on a machine that other processes use too.

Threads of one computation wait for each other many times in a step, and OpenMP lets them spin while they wait. Beside
other processes the kernel suspends one of them while the other spins for it, and a step takes thirty times as long
(benchmarks/busy.py). There are two remedies. Within `giving_way`, waiting threads sleep instead of spinning while
others use the cores; this changes no result. Between steps, `adapted` leaves other processes the cores they use.
"""

from __future__ import annotations

import ctypes
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tunewright.system import machine

ENOUGH = 0.2  # seconds that a measurement must span: /proc counts in hundredths
MARGIN = 0.6  # of a core: what others must use more, or less, than assumed before the threads change
POLL = 0.3  # seconds
_others: float | None = None  # cores that others used when the watch of `giving_way` last looked
CROWDED, CALM = 0.25, 0.15  # cores used by others: from here waiting threads sleep, and below here they spin again


@dataclass(frozen=True)
class Usage:
    """Seconds since the machine started: of the clock, of the cores that this process may use, and of this process."""

    clock: float
    cores: float
    own: float


@dataclass(frozen=True)
class Crowd:
    """``threads`` of the ``planned`` ones, on ``cores`` that other processes use too."""

    planned: int
    cores: int
    threads: int
    usage: Usage | None


def alone(planned: int) -> Crowd:
    """The beginning: all threads, until others are measured."""
    return Crowd(planned, machine.cores(), planned, usage())


def now(planned: int) -> Crowd:
    """The beginning, within `giving_way`: the threads for what others used last."""
    crowd = alone(planned)
    return crowd if _others is None else replace(crowd, threads=threads(crowd, _others))


def usage() -> Usage | None:
    """None where the system does not tell (not Linux)."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            lines = [line.split() for line in file if line.startswith("cpu")]
    except OSError:
        return None
    allowed = {f"cpu{n}" for n in os.sched_getaffinity(0)}
    ticks = 0
    for name, *counts in lines:
        if name in allowed:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, counts[:8])
            ticks += user + nice + system + irq + softirq + steal
    own = resource.getrusage(resource.RUSAGE_SELF)
    return Usage(time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), own.ru_utime + own.ru_stime)


def used_by_others(before: Usage, now: Usage) -> float:
    """Cores that other processes used, on average."""
    return max(0.0, (now.cores - before.cores) - (now.own - before.own)) / (now.clock - before.clock)


def adapted(crowd: Crowd) -> Crowd:
    """The threads for the next step, from what others used since the last measurement."""
    before = crowd.usage
    if before is None or time.monotonic() - before.clock < ENOUGH or (now := usage()) is None:
        return crowd
    return replace(crowd, threads=threads(crowd, used_by_others(before, now)), usage=now)


def use(threads: int) -> None:
    if threads != torch.get_num_threads():  # setting them makes torch forget its prepared products
        torch.set_num_threads(threads)


@contextmanager
def restored() -> Iterator[None]:
    """Within, the threads may change; afterwards they are as before."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads(crowd: Crowd, others: float) -> int:
    """As many of the planned threads as there are cores that others do not use. The number changes only if others use
    ``MARGIN`` of a core more or less than it assumes, so that it does not go back and forth."""
    left = crowd.cores - others
    enough = crowd.threads == crowd.planned and left > crowd.planned
    if enough or abs(left - crowd.threads) < MARGIN:
        return crowd.threads
    return min(crowd.planned, max(1, round(left)))


@contextmanager
def giving_way() -> Iterator[None]:
    """Within, this process's threads sleep while they wait for each other, if other processes use the cores."""
    global _others
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(over,), name="giving_way", daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()
        _others = None


def is_crowded(was: bool, others: float) -> bool:
    return others > (CALM if was else CROWDED)


def _watch(over: threading.Event) -> None:
    global _others
    before, crowded, team_over = usage(), False, threading.Event()
    while before is not None and not over.wait(POLL) and (current := usage()) is not None:
        _others = used_by_others(before, current)
        crowded, was = is_crowded(crowded, _others), crowded
        if crowded and not was:
            team_over = start_second_team()
        elif was and not crowded:
            team_over.set()
        before = current
    team_over.set()


def start_second_team() -> threading.Event:
    """Start threads that sleep until the event is set.

    libgomp reads its settings once, when it is loaded, but in a process that has more OpenMP threads than cores a
    waiting thread spins for a hundred rounds instead of some milliseconds (`gomp_throttled_spin_count_var`).
    """
    over, started = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            torch.ones(1 << 20).add_(1)  # torch sets this thread's number of OpenMP threads before its first operation
            if (openmp := _openmp()) is not None:
                openmp.omp_set_num_threads(machine.cores())
                torch.ones(1 << 20).add_(1)
        finally:
            started.set()
        over.wait()

    threading.Thread(target=hold, name="second_team", daemon=True).start()
    started.wait()
    return over


def _openmp() -> ctypes.CDLL | None:
    """GNU's OpenMP library, as torch has loaded it."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    loaded = next((line.split(maxsplit=5)[-1] for line in maps if "/libgomp" in line), None)
    return None if loaded is None else ctypes.CDLL(loaded)
