"""Runs jobs in a given place, as many at a time as fit there, and restarts those that are killed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import torch

from tunewright.core import programs
from tunewright.core.console import Console
from tunewright.core.errors import TunewrightError
from tunewright.core.words import counted
from tunewright.fan import local, on_ray, printed
from tunewright.fan.jobs import Ended, Job, Where

POLL_SECONDS = 0.5
DEATHS = 3  # from the same checkpoint, until a job is given up
LOCKED_SECONDS = 600.0  # for another process that trains a job's branch


class Place(Protocol):
    """Where jobs run as processes."""

    def has_room(self) -> bool: ...

    def start(self, job: Job) -> None: ...

    def ended(self) -> list[Ended]:
        """Those that have ended since the last call."""
        ...

    def stop(self) -> None:
        """Ask all that run to save and end, and wait for them."""
        ...


def threads(where: Where, cores: int) -> int:
    """CPU threads of each job: the cores of this machine, divided among those that run on it at a time."""
    return max(1, cores // len(local.rooms(where, torch.cuda.device_count()))) if where.on == "local" else cores


def run(jobs: Sequence[Job], where: Where, console: Console) -> dict[str, TunewrightError]:
    """Runs all jobs, and returns the errors of those that failed, by name. Raises RUN_WAITS if they are printed."""
    if not jobs:
        return {}
    if where.on == "print":
        raise printed.shown(jobs)
    place: Place = on_ray.Ray(where) if where.on == "ray" else local.Local(where)
    try:
        return _run(jobs, place, console)
    finally:
        place.stop()


def _run(jobs: Sequence[Job], place: Place, console: Console) -> dict[str, TunewrightError]:
    waiting, running = deque(jobs), list[Job]()
    deaths: dict[str, list[int]] = {job.name: [] for job in jobs}
    locked: dict[str, float] = {}
    failed: dict[str, TunewrightError] = {}
    shown = sum(job.step() for job in jobs)
    title, steps = f"train {counted(len(jobs), 'branch', 'branches')}", sum(job.steps for job in jobs)
    with console.bar(title, steps, shown) as tick:
        while waiting or running:
            while waiting and place.has_room():
                running.append(waiting.popleft())
                place.start(running[-1])
            time.sleep(POLL_SECONDS)
            for ended in place.ended():
                running.remove(ended.job)
                if ended.killed:
                    console.warn(f"  {ended.job.name} was killed after step {ended.job.step()}")
                if _is_tried_again(ended, deaths[ended.job.name], locked):
                    waiting.append(ended.job)
                elif ended.status:
                    where = str(ended.job.folder)
                    error = ended.lost() if ended.killed else programs.error_of(ended.status, ended.errors, where)
                    failed[ended.job.name] = error
                    console.warn(f"  {ended.job.name}: {error}")
            now = sum(job.step() for job in jobs)
            tick(max(0, now - shown), f"steps, {len(running)} started")
            shown = max(shown, now)
    return failed


def _is_tried_again(ended: Ended, deaths: list[int], locked: dict[str, float]) -> bool:
    """A job that was killed, unless it has saved nothing new between its last ``deaths``; and for a while, one whose
    branch another process trains. ``locked``: since when, by name."""
    if ended.locked:
        return time.monotonic() - locked.setdefault(ended.job.name, time.monotonic()) < LOCKED_SECONDS
    if ended.killed:
        deaths.append(ended.job.saved())
        return deaths[-DEATHS:] != [deaths[-1]] * DEATHS
    return False
