"""Threads on a machine that other processes use too.

Threads of one computation wait for each other many times in a step, and OpenMP lets them spin while they wait. Beside
other processes the kernel suspends one of them while the other spins for it, and a step takes thirty times as long
(benchmarks/busy.py). There are two remedies. At any time, `give_way` lets waiting threads sleep instead of spinning;
this changes no result. Between training steps, `adapted` leaves to other processes as many cores as they use.
"""

from __future__ import annotations

import functools
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

ENOUGH = 0.2  # seconds that a measurement must span: /proc counts in hundredths
MARGIN = 0.6  # of a core: what others must use more, or less, than assumed before the threads change
POLL = 0.3  # seconds
CROWDED, FREE = 0.25, 0.15  # cores used by others: from here waiting threads sleep, and below here they spin again


@dataclass(frozen=True)
class Usage:
    """Seconds since the machine started: of the clock, of the cores that this process may use, and of this process."""

    clock: float
    cores: float
    own: float


@dataclass(frozen=True)
class Crowd:
    """``threads`` of at most ``cores``; ``others``: how many cores other processes used when it was last measured."""

    cores: int
    threads: int
    usage: Usage | None
    others: float = 0.0


def alone(cores: int) -> Crowd:
    """The beginning: all threads, until others are measured."""
    return Crowd(cores, cores, usage())


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
    now, before = usage(), crowd.usage
    if now is None or before is None or now.clock - before.clock < ENOUGH:
        return crowd
    others = used_by_others(before, now)
    return Crowd(crowd.cores, threads(crowd, others), now, others)


def use(crowd: Crowd) -> None:
    torch.set_num_threads(crowd.threads)


@contextmanager
def restored() -> Iterator[None]:
    """Within, the threads may change; afterwards they are as before."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads(crowd: Crowd, others: float) -> int:
    """As many as there are cores that others do not use. The number changes only if others use ``MARGIN`` of a core
    more or less than it assumes, so that it does not go back and forth."""
    assumed = crowd.cores - crowd.threads
    if abs(others - assumed) < MARGIN:
        return crowd.threads
    return min(crowd.cores, max(1, crowd.cores - round(others)))


@functools.cache
def give_way() -> None:
    """From now on, while other processes use the cores, this process's threads sleep while they wait for each other."""
    if usage() is not None:
        threading.Thread(target=_watch, name="give_way", daemon=True).start()


def is_crowded(was: bool, others: float) -> bool:
    return others > (FREE if was else CROWDED)


def _watch() -> None:
    before, over = usage(), threading.Event()
    crowded = False
    while before is not None:
        time.sleep(POLL)
        now = usage()
        assert now is not None
        crowded, was = is_crowded(crowded, used_by_others(before, now)), crowded
        if crowded and not was:
            over = short_waits()
        elif was and not crowded:
            over.set()
        before = now


def short_waits() -> threading.Event:
    """Let waiting threads sleep until the event is set.

    libgomp reads its settings once, when it is loaded, but a process that has more OpenMP threads than cores spins for
    a hundred rounds instead of some milliseconds (`gomp_throttled_spin_count_var`). So a second team of threads is
    started, which sleeps; it ends with the thread that started it.
    """
    over, started = threading.Event(), threading.Event()

    def hold() -> None:
        torch.ones(1 << 20).add_(1)  # large enough for all threads
        started.set()
        over.wait()

    threading.Thread(target=hold, name="short_waits", daemon=True).start()
    started.wait()
    return over
