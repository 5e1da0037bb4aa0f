"""Threads on a machine that other processes use too.

Threads of one computation wait for each other many times in a step. Where a core is shared, each of them waits for the
one that the kernel has suspended, so two threads beside one busy process are slower than one (benchmarks/busy.py).
Hence between steps: measure how much of the cores other processes have used, and leave that many to them.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

ENOUGH = 0.2  # seconds that a measurement must span: /proc counts in hundredths
MARGIN = 0.6  # of a core: what others must use more, or less, than assumed before the threads change


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


def after_step(crowd: Crowd) -> Crowd:
    """The threads for the next step, from what happened since the last measurement."""
    now, before = usage(), crowd.usage
    if now is None or before is None or now.clock - before.clock < ENOUGH:
        return crowd
    others = max(0.0, (now.cores - before.cores) - (now.own - before.own)) / (now.clock - before.clock)
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
