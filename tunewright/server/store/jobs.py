"""Fine-tuning jobs and their events. The only module that changes the state of a job.

    validating_files -> queued -> running -> succeeded, failed
    any of the first three -> cancelled; running -> queued (paused, or its process was killed)

Who runs a job holds its ``attempt``: a change for an earlier attempt changes nothing.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Literal

from tunewright.server.shapes import JsonObject
from tunewright.server.store.database import Database, Page, new_id, now

Status = Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]
Wanted = Literal["run", "pause", "cancel"]  # by the user
FINISHED = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Job:
    """``request``: as it was made, with defaults. ``digest``: of tenant and request, to know a repeated one.
    ``deaths``: how often its process was killed without having saved anything new. ``run_bytes``: of its run folder,
    when its process last ended."""

    seq: int
    id: str
    tenant: str
    created_at: int
    request: JsonObject
    digest: str
    status: Status
    wanted: Wanted
    attempt: int
    deaths: int
    started_at: int | None
    finished_at: int | None
    error: JsonObject | None
    model_id: str | None
    trained_tokens: int | None
    result_file: str | None
    model_deleted: bool
    run_bytes: int

    @property
    def paused(self) -> bool:
        return self.wanted == "pause" and self.status not in FINISHED

    @classmethod
    def of(cls, row: sqlite3.Row) -> Job:
        values = dict(row)
        values["request"] = json.loads(values["request"])
        values["error"] = json.loads(values["error"]) if values["error"] else None
        values["model_deleted"] = bool(values["model_deleted"])
        return cls(**values)


class Jobs:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, tenant: str, request: JsonObject, digest: str, prefix: str) -> Job:
        """A new job, which is to be validated. ``prefix``: of its model's name, before a part of the job's id."""
        job_id = new_id("ftjob-")
        model_id = prefix + job_id.removeprefix("ftjob-")[:8]
        with self._database.transaction():
            self._database.change(
                "INSERT INTO jobs (id, tenant, created_at, request, digest, status, model_id)"
                " VALUES (?, ?, ?, ?, ?, 'validating_files', ?)",
                *(job_id, tenant, now(), json.dumps(request), digest, model_id),
            )
            self.event(job_id, "created", f"Created fine-tuning job: {job_id}")
            self.event(job_id, "validating", f"Validating training file: {request['training_file']}")
        job = self.get(tenant, job_id)
        assert job is not None
        return job

    def repeated(self, tenant: str, digest: str, since: int) -> Job | None:
        """The last job of the same request that was made after ``since``."""
        sql = "SELECT * FROM jobs WHERE tenant = ? AND digest = ? AND created_at >= ? ORDER BY seq DESC LIMIT 1"
        row = self._database.row(sql, tenant, digest, since)
        return Job.of(row) if row is not None else None

    def get(self, tenant: str, job_id: str) -> Job | None:
        row = self._database.row("SELECT * FROM jobs WHERE id = ? AND tenant = ?", job_id, tenant)
        return Job.of(row) if row is not None else None

    def of_model(self, tenant: str, model_id: str) -> Job | None:
        sql = "SELECT * FROM jobs WHERE tenant = ? AND model_id = ? AND NOT model_deleted"
        row = self._database.row(sql, tenant, model_id)
        return Job.of(row) if row is not None else None

    def page(self, tenant: str, after: str | None, limit: int) -> Page:
        return self._database.page("jobs", {"tenant": tenant}, after, limit, newest_first=True)

    def all_of(self, tenant: str | None = None) -> list[Job]:
        """Oldest first."""
        where, values = ("WHERE tenant = ?", (tenant,)) if tenant is not None else ("", ())
        return [Job.of(row) for row in self._database.rows(f"SELECT * FROM jobs {where} ORDER BY seq", *values)]

    def in_state(self, status: Status) -> list[Job]:
        """Oldest first."""
        return [Job.of(r) for r in self._database.rows("SELECT * FROM jobs WHERE status = ? ORDER BY seq", status)]

    def uses(self, file_id: str) -> Job | None:
        """A job that is not finished and reads a file."""
        for status in ("validating_files", "queued", "running"):
            for job in self.in_state(status):
                if file_id in (job.request["training_file"], job.request.get("validation_file")):
                    return job
        return None

    def want(self, job: Job, wanted: Wanted, message: str) -> None:
        """What the user wants of it. One that waits obeys at once."""
        with self._database.transaction():
            sql = "UPDATE jobs SET wanted = ? WHERE id = ? AND wanted != 'cancel'"  # a cancelled job stays cancelled
            self._database.change(sql, wanted, job.id)
            if wanted == "cancel":
                self._database.change(
                    "UPDATE jobs SET status = 'cancelled', finished_at = ?"
                    " WHERE id = ? AND status IN ('validating_files', 'queued')",
                    *(now(), job.id),
                )
            self.event(job.id, new_id("wanted-"), message)

    def validated(self, job: Job) -> None:
        with self._database.transaction():
            sql = "UPDATE jobs SET status = 'queued' WHERE id = ? AND status = 'validating_files'"
            if self._database.change(sql, job.id):
                self.event(job.id, "validated", "Files validated, moving job to queued state")

    def start(self, job: Job) -> int:
        """The attempt that may run the job; 0 if it is not in the queue any more."""
        with self._database.transaction():
            sql = """UPDATE jobs SET status = 'running', attempt = attempt + 1, started_at = COALESCE(started_at, ?)
                     WHERE id = ? AND status = 'queued' AND wanted = 'run'"""
            if not self._database.change(sql, now(), job.id):
                return 0
            attempt = job.attempt + 1
            message = "Fine-tuning job started" if attempt == 1 else "Fine-tuning job continues"
            self.event(job.id, f"started-{attempt}", message)
            return attempt

    def requeue(self, job: Job, attempt: int, message: str, deaths: int, *, paused: bool = False) -> None:
        """Its process has ended before the job was finished; it continues where it stopped, unless it was cancelled.
        ``paused``: not before it is resumed."""
        with self._database.transaction():
            sql = """UPDATE jobs SET status = CASE wanted WHEN 'cancel' THEN 'cancelled' ELSE 'queued' END,
                     wanted = CASE WHEN ? AND wanted = 'run' THEN 'pause' ELSE wanted END,
                     deaths = ?, finished_at = CASE wanted WHEN 'cancel' THEN ? END
                     WHERE id = ? AND attempt = ? AND status = 'running'"""
            if self._database.change(sql, paused, deaths, now(), job.id, attempt):
                self.event(job.id, f"stopped-{attempt}", message, "warn" if paused else "info")

    def finish(
        self,
        job: Job,
        attempt: int,
        status: Status,
        message: str,
        error: JsonObject | None = None,
        results: tuple[int | None, str | None] = (None, None),
    ) -> bool:
        """Whether the job ended now: it ends once. ``results``: trained tokens, and the file of results."""
        assert status in FINISHED
        with self._database.transaction():
            sql = """UPDATE jobs SET status = ?, finished_at = ?, error = ?, trained_tokens = ?, result_file = ?
                     WHERE id = ? AND attempt = ? AND status IN ('validating_files', 'running')"""
            stored = json.dumps(error) if error else None
            if not self._database.change(sql, status, now(), stored, *results, job.id, attempt):
                return False
            level = "error" if status == "failed" else "info"
            self.event(job.id, "finished", message, level)
            return True

    def delete_model(self, job: Job) -> None:
        self._database.change("UPDATE jobs SET model_deleted = 1 WHERE id = ?", job.id)

    def measured(self, job: Job, run_bytes: int) -> None:
        self._database.change("UPDATE jobs SET run_bytes = ? WHERE id = ?", run_bytes, job.id)

    def event(
        self, job_id: str, source: str, message: str, level: str = "info", data: JsonObject | None = None
    ) -> None:
        """``source``: what the event reports, so that it is reported once. ``data``: metrics of a step."""
        self._database.change(
            "INSERT OR IGNORE INTO events (id, job, source, created_at, level, message, type, data)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            *(new_id("ftevent-"), job_id, source, now(), level, message),
            *("metrics" if data else "message", json.dumps(data) if data else None),
        )

    def events(self, job_id: str, after: str | None, limit: int) -> Page:
        return self._database.page("events", {"job": job_id}, after, limit, newest_first=True)


def event_json(row: sqlite3.Row) -> JsonObject:
    return {
        "id": row["id"],
        "object": "fine_tuning.job.event",
        "created_at": row["created_at"],
        "level": row["level"],
        "message": row["message"],
        "type": row["type"],
        "data": json.loads(row["data"]) if row["data"] else {},
    }
