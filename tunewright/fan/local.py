"""Jobs as processes of this machine: one at a time, or one for each GPU or part of the cores."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

import torch

from tunewright.fan.jobs import Ended, Job, Where

SAVING_SECONDS = 120  # for a process that was asked to save and end


@dataclass(frozen=True)
class Running:
    """``room``: the environment variables of the part of the machine that it uses."""

    job: Job
    process: subprocess.Popen[bytes]
    errors: BinaryIO
    room: Mapping[str, str]

    def words(self) -> str:
        """What it has printed on stderr."""
        with self.errors:
            self.errors.seek(0)
            return self.errors.read().decode(errors="replace")


class Local:
    """Processes that end with this one, however it ends (see `stages.worker`)."""

    def __init__(self, where: Where) -> None:
        self._rooms = rooms(where, torch.cuda.device_count())
        self._running: list[Running] = []

    def has_room(self) -> bool:
        return bool(self._rooms)

    def start(self, job: Job) -> None:
        errors, room = tempfile.TemporaryFile(), self._rooms[0]  # noqa: SIM115
        command = [sys.executable, "-m", job.module, *job.arguments, "--parent", str(os.getpid())]
        environment = {**os.environ, **room}
        try:
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=errors, env=environment, start_new_session=True
            )
        except OSError:
            errors.close()
            raise
        del self._rooms[0]
        self._running.append(Running(job, process, errors, room))

    def ended(self) -> list[Ended]:
        over = [running for running in self._running if running.process.poll() is not None]
        for running in over:
            self._running.remove(running)
            self._rooms.append(running.room)
        return [Ended(running.job, running.process.returncode, running.words()) for running in over]

    def terminate(self, job: Job) -> None:
        """Have a job save and end."""
        for running in self._running:
            if running.job == job:
                running.process.terminate()

    def stop(self) -> None:
        for running in self._running:
            running.process.terminate()
        for running in self._running:
            try:
                running.process.wait(SAVING_SECONDS)
            except subprocess.TimeoutExpired:
                running.process.kill()
                running.process.wait()
            running.errors.close()


def rooms(where: Where, gpus: int) -> list[Mapping[str, str]]:
    """A part of the machine for each job that runs at a time."""
    if not gpus:
        return [{} for _ in range(where.at_once or 1)]
    devices = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
    names = devices.split(",")
    return [{"CUDA_VISIBLE_DEVICES": names[i % len(names)]} for i in range(where.at_once or len(names))]
