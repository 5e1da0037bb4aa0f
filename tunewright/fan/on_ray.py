"""Jobs as tasks of a Ray cluster, each in a fresh worker process: on RAY_ADDRESS, otherwise on this machine.

All machines must see the run folder under the same path, and have this package installed. Only Ray's tasks are used:
what was done is in the run folder, so Ray need not know of it.
"""

from __future__ import annotations

import contextlib
import io
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

from tunewright.core.errors import MissingExtra, RunError
from tunewright.fan.jobs import Ended, Job, Where

KILLED = -signal.SIGKILL
NOT_SEEN = 120  # exit status of a job whose machine does not see its folder


def as_task(job: Job) -> tuple[int, str]:
    """Runs a job in this process, which then ends. Returns its exit status and what it printed on stderr."""
    if not job.folder.is_dir():
        return NOT_SEEN, ""
    errors = io.StringIO()
    sys.argv = [job.module, *job.arguments]
    try:
        with contextlib.redirect_stderr(errors):
            runpy.run_module(job.module, run_name="__main__", alter_sys=False)
    except SystemExit as end:
        return int(end.code or 0), errors.getvalue()
    return 0, errors.getvalue()


class Ray:
    """Tasks in flight. Ray queues what does not fit, so there is always room."""

    def __init__(self, where: Where) -> None:
        try:
            import ray
        except ImportError:
            raise MissingExtra("ray", "--on ray", "pip install 'tunewright[ray]'", where="--on") from None
        self._ray: Any = ray
        self._started = not ray.is_initialized()
        if self._started:
            ray.init(log_to_driver=False, logging_level="ERROR")
        gpus = where.gpus_each if ray.cluster_resources().get("GPU") else 0
        self._task = ray.remote(max_calls=1, max_retries=0, num_gpus=gpus)(as_task)
        self._most, self._running = where.at_once, dict[Any, Job]()

    def has_room(self) -> bool:
        return self._most is None or len(self._running) < self._most

    def start(self, job: Job) -> None:
        if not Path(job.folder).is_dir():
            raise RunError("RUN_NOT_FOUND", f"{job.folder} does not exist.", where=str(job.folder))
        self._running[self._task.options(num_cpus=job.threads, name=job.name).remote(job)] = job

    def ended(self) -> list[Ended]:
        over, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [self._ended(task, self._running.pop(task)) for task in over]

    def _ended(self, task: Any, job: Job) -> Ended:
        crashed = (self._ray.exceptions.WorkerCrashedError, self._ray.exceptions.NodeDiedError)
        try:
            status, errors = self._ray.get(task)
        except crashed:
            return Ended(job, KILLED, "")
        if status == NOT_SEEN:
            raise RunError(
                "RUN_NOT_FOUND",
                f"a machine of the cluster does not see {job.folder}.",
                where=str(job.folder),
                fix="put the runs on a disk that all of its machines see under this path: --runs FOLDER.",
            )
        return Ended(job, status, errors)

    def stop(self) -> None:
        for task in self._running:
            self._ray.cancel(task)
        if self._running:
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=120)
        if self._started:
            self._ray.shutdown()
