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
        try:
            if self._started:
                ray.init(log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            message = f"the Ray cluster cannot be reached: {str(error).splitlines()[0][:200]}"
            fix = "check RAY_ADDRESS and the token (`ray get-auth-token`)."
            raise RunError("REMOTE_FAILED", message, where="--on ray", fix=fix) from None
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        with_gpu = [node for node in nodes if node.get("GPU")]
        # Of the largest machine, what is there for each GPU, or all of it.
        self._cpus = max(int(node.get("CPU", 1) // max(1, node.get("GPU", 0))) for node in with_gpu or nodes)
        self._task = ray.remote(max_calls=1, max_retries=0, num_gpus=1 if with_gpu else 0)(as_task)
        self._most, self._running = where.at_once, dict[Any, Job]()

    def has_room(self) -> bool:
        return self._most is None or len(self._running) < self._most

    def start(self, job: Job) -> None:
        task = self._task.options(num_cpus=max(1, min(job.threads, self._cpus)), name=job.name)
        self._running[task.remote(job)] = job

    def ended(self) -> list[Ended]:
        over, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [self._ended(task, self._running.pop(task)) for task in over]

    def _ended(self, task: Any, job: Job) -> Ended:
        errors = self._ray.exceptions
        try:
            status, words = self._ray.get(task)
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError):
            return Ended(job, KILLED, "")
        except errors.RayError as error:
            return Ended(job, 1, str(error).strip().splitlines()[-1])
        if status == NOT_SEEN:
            raise RunError(
                "RUN_NOT_FOUND",
                f"a machine of the cluster does not see {job.folder}.",
                where=str(job.folder),
                fix="put the runs on a disk that all of its machines see under this path: --runs FOLDER.",
            )
        return Ended(job, status, words)

    def stop(self) -> None:
        for task in self._running:
            self._ray.cancel(task)
        if self._running:
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=120)
        if self._started:
            self._ray.shutdown()
