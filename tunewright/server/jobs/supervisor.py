"""Validates, starts, follows and ends jobs: the oldest first, as many at a time as the machine has places for.

The server may be killed at any moment. A job's process ends with it, and saves first. What was running is put back into
the queue when the server starts again, and continues in its run folder; the folder's lock keeps out a process that has
not ended yet.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from tunewright.core import programs, records
from tunewright.core.config import Config, to_yaml
from tunewright.core.errors import TunewrightError
from tunewright.core.run_folder import Run, disk_errors, make_folder, write_atomic
from tunewright.fan.jobs import Ended, Where
from tunewright.fan.jobs import Job as Process
from tunewright.fan.local import Local
from tunewright.server.jobs.follow import Follower, results_csv
from tunewright.server.shapes import JsonObject
from tunewright.server.store.files import Files, size_of
from tunewright.server.store.jobs import Job, Jobs

POLL_SECONDS = 0.2
DEATHS = 3  # without a new checkpoint between them
OVER_QUOTA = "The job is paused, because its tenant's quota is used up; delete files or models, then resume it"
WHY_STOPPED = {
    "pause": "The job is paused; resuming it continues where it stopped",
    "run": "The job's process ended before it was finished; it will continue where it stopped",
}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workshop:
    """Where jobs are worked on. ``config_of``: the config of a job's run; raises TunewrightError. ``read``: reads the
    rows of a config. ``arguments``: more of `work`."""

    folder: Path
    jobs: Jobs
    files: Files
    config_of: Callable[[Job], Config]
    read: Callable[[Config], Future[JsonObject]]
    arguments: tuple[str, ...] = ()

    def run(self, job: Job) -> Run:
        return Run(self.folder / job.id)

    def measure(self, job: Job) -> None:
        """What the job's run has stored counts as its tenant's."""
        self.jobs.measured(job, size_of(self.run(job).path))

    def delete_model(self, job: Job) -> None:
        """The weights of a job that has ended. What the run has proved stays."""
        self.jobs.delete_model(job)  # first: it is not asked any more
        run = self.run(job)
        for folder in (run.checkpoints, run.adapter, run.merged, *run.path.glob("branches/*/checkpoints")):
            shutil.rmtree(folder, ignore_errors=True)
        self.measure(job)


@dataclass
class _Running:
    job: Job
    attempt: int
    process: Process
    follower: Follower
    step: int
    stopping: bool = field(default=False)


class Supervisor:
    """``at_once``: jobs at a time; None: one for each GPU, or one."""

    def __init__(self, workshop: Workshop, at_once: int | None = None) -> None:
        self._workshop, self._jobs = workshop, workshop.jobs
        self._local = Local(Where(on="local", at_once=at_once))
        self._reading: dict[str, tuple[Config, Future[JsonObject]]] = {}
        self._running: dict[str, _Running] = {}
        self._ended: list[Ended] = []  # whose end is not stored yet
        self._problems: dict[str, str] = {}  # of jobs that something failed for, as last logged
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def start(self) -> None:
        for job in self._jobs.all_of():
            if not job.run_bytes and job.attempt:  # of a version that did not count it
                self._workshop.measure(job)
        for job in self._jobs.in_state("running"):  # of a server that was killed
            self._jobs.requeue(job, job.attempt, "The server was restarted; the job continues", job.deaths)
        self._thread.start()

    def close(self) -> None:
        """Running jobs save and stop; they continue when a server is started again."""
        self._closing.set()
        self._thread.join()
        self._local.stop()
        for running in self._running.values():
            running.follower.look()

    def _watch(self) -> None:
        while not self._closing.wait(POLL_SECONDS):
            try:
                self._look()
            except Exception:  # a full disk, for example: the jobs are as they were, and are looked at again
                log.exception("the supervisor failed; it tries again")

    def _look(self) -> None:
        validating = self._jobs.in_state("validating_files")
        for job_id in self._reading.keys() - {job.id for job in validating}:  # cancelled
            self._reading.pop(job_id)[1].cancel()
        for job in validating:
            self._each(job, lambda job=job: self._validate(job))  # type: ignore[misc]
        self._stop_unwanted()
        for running in self._running.values():
            self._each(running.job, running.follower.look)
        self._ended += self._local.ended()
        for ended in list(self._ended):
            running = self._running[ended.job.name]
            if self._each(running.job, lambda r=running, e=ended: self._end(r, e)):  # type: ignore[misc]
                self._ended.remove(ended)
                del self._running[ended.job.name]
        for job in self._jobs.in_state("queued"):
            if not self._local.has_room():
                break
            if job.wanted == "run" and not self._workshop.files.room(job.tenant):
                self._jobs.want(job, "pause", OVER_QUOTA)
            elif job.wanted == "run" and job.id not in self._running:
                self._each(job, lambda job=job: self._start(job))  # type: ignore[misc]

    def _each(self, job: Job, act: Callable[[], None]) -> bool:
        """Whether ``act`` succeeded. What fails for one job, say on a full disk, stops no other, and is tried again."""
        try:
            act()
        except Exception as error:
            if self._problems.get(job.id) != str(error):  # not five times a second
                self._problems[job.id] = str(error)
                log.exception("the job %s; it is tried again", job.id)
            return False
        self._problems.pop(job.id, None)
        return True

    def _validate(self, job: Job) -> None:
        """The rows are read as the run will read them: mistakes in them end the job before it waits for its turn."""
        try:
            if job.id not in self._reading:
                config = self._workshop.config_of(job)
                self._reading[job.id] = config, self._workshop.read(config)
            config, reading = self._reading[job.id]
            if not reading.done():
                return
            del self._reading[job.id]
            reading.result()
            with disk_errors(self._workshop.folder):
                make_folder(self._workshop.folder)
            write_atomic(self._config(job), to_yaml(config))
        except TunewrightError as error:
            if error.code == "RUN_DISK":  # not the file's fault
                raise
            self._jobs.finish(job, 0, "failed", f"The training file is not valid: {error}", error_json(error))
        else:
            self._jobs.validated(job)

    def _config(self, job: Job) -> Path:
        return self._workshop.folder / f"{job.id}.yaml"

    def _start(self, job: Job) -> None:
        config = self._config_of(job)
        if config is not None:
            write_atomic(self._config(job), to_yaml(config))  # the home may have moved
        attempt = self._jobs.start(job)
        if not attempt:
            return
        run = self._workshop.run(job)
        arguments = (str(self._config(job)), str(self._workshop.folder), job.id, *self._workshop.arguments)
        process = Process(job.id, "tunewright.server.jobs.work", arguments, run.path, steps=0, threads=0)
        try:
            self._local.start(process)
        except OSError as error:  # no process or file can be opened any more
            message = f"The job is paused, because its process could not be started: {error}; resume it later"
            self._jobs.requeue(job, attempt, message, deaths=0, paused=True)
            return
        self._running[job.id] = _Running(job, attempt, process, Follower(self._jobs, job, run), process.saved())

    def _config_of(self, job: Job) -> Config | None:
        """None if it cannot be made any more, say because the server has lost its model: it stays as it was."""
        try:
            return self._workshop.config_of(job)
        except (TunewrightError, ValidationError):
            return None

    def _stop_unwanted(self) -> None:
        for running in self._running.values():
            now = self._jobs.get(running.job.tenant, running.job.id)
            if now is not None and now.wanted != "run" and not running.stopping:
                running.stopping = True
                self._local.terminate(running.process)

    def _end(self, running: _Running, ended: Ended) -> None:
        job, run = running.job, self._workshop.run(running.job)
        running.follower.look()
        self._workshop.measure(job)
        now = self._jobs.get(job.tenant, job.id)
        wanted = now.wanted if now is not None else "cancel"
        if ended.status == 0:
            tokens = records.read(run.training, records.Training).tokens
            message = "The job has successfully completed"
            self._jobs.finish(job, running.attempt, "succeeded", message, results=(tokens, self._results(job, run)))
        elif wanted == "cancel":
            self._jobs.finish(job, running.attempt, "cancelled", "The job was cancelled")
        elif ended.killed or ended.locked:
            self._killed(running, ended, wanted)
        elif (error := programs.error_of(ended.status, ended.errors, str(run.path))).code == "RUN_DISK":
            message = f"The job is paused; make room, then resume it: {error}"
            self._jobs.requeue(job, running.attempt, message, deaths=0, paused=True)
        else:
            self._jobs.finish(job, running.attempt, "failed", f"The job failed: {error}", error_json(error))

    def _killed(self, running: _Running, ended: Ended, wanted: str) -> None:
        """Put back into the queue, unless it is killed again and again."""
        by_itself = ended.status < 0
        again = running.process.saved() <= running.step and not running.stopping
        deaths = running.job.deaths + 1 if by_itself and again else 0
        if deaths >= DEATHS:
            error = ended.lost()
            self._jobs.finish(running.job, running.attempt, "failed", f"The job failed: {error}", error_json(error))
            return
        self._jobs.requeue(running.job, running.attempt, WHY_STOPPED["pause" if wanted == "pause" else "run"], deaths)

    def _results(self, job: Job, run: Run) -> str:
        """The file of results."""
        name, content = "step_metrics.csv", results_csv(run)
        return self._workshop.files.add_beyond_quota(job.tenant, name, "fine-tune-results", content, job.id).id


def error_json(error: TunewrightError) -> JsonObject:
    """As OpenAI's job has it; ``param`` names the file whose rows are wrong."""
    param = "training_file" if error.code.startswith(("DATA_", "LABELS_", "SPLIT_")) else None
    return {"code": error.code, "message": str(error)[:4000], "param": param}
