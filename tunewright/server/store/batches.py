"""Batches: files of requests that are answered when there is time. The only module that changes the state of one."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any, Literal

from tunewright.server.shapes import JsonObject
from tunewright.server.store.database import Database, Page, new_id, now

Status = Literal["validating", "failed", "in_progress", "completed", "cancelling", "cancelled"]
WINDOW_SECONDS = 24 * 3600
FINISHED = ("failed", "completed", "cancelled")
# The states that may follow one. A batch that has finished stays as it is.
NEXT: dict[str, tuple[str, ...]] = {
    "validating": ("failed", "in_progress", "cancelling"),
    "in_progress": ("completed", "failed", "cancelling"),
    "cancelling": ("cancelled", "failed"),
}
TIMES = ("in_progress", "completed", "failed", "cancelling", "cancelled")


@dataclass(frozen=True)
class Batch:
    """``times``: when it came into a state."""

    seq: int
    id: str
    tenant: str
    created_at: int
    request: JsonObject
    status: Status
    total: int
    completed: int
    failed: int
    output_file: str | None
    error_file: str | None
    times: dict[str, int]
    errors: list[JsonObject] | None

    @classmethod
    def of(cls, row: sqlite3.Row) -> Batch:
        read = {name: json.loads(row[name]) if row[name] else None for name in ("request", "times", "errors")}
        return cls(**{**dict(row), **read})

    def to_json(self) -> JsonObject:
        times = {f"{name}_at": self.times.get(name) for name in TIMES}
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.request["endpoint"],
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.request["input_file_id"],
            "completion_window": self.request["completion_window"],
            "status": self.status,
            "output_file_id": self.output_file,
            "error_file_id": self.error_file,
            "created_at": self.created_at,
            "expires_at": self.created_at + WINDOW_SECONDS,
            **times,
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "metadata": self.request["metadata"],
        }


class Batches:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, tenant: str, request: JsonObject, since: int | None) -> Batch:
        """A new batch, or the one that was made of an equal request ``since``."""
        batch_id, written = new_id("batch_"), json.dumps(request)
        with self._database.transaction():
            sql = "SELECT * FROM batches WHERE tenant = ? AND request = ? AND created_at >= ? ORDER BY seq DESC LIMIT 1"
            if since is not None and (row := self._database.row(sql, tenant, written, since)) is not None:
                return Batch.of(row)
            sql = "INSERT INTO batches (id, tenant, created_at, request, status) VALUES (?, ?, ?, ?, 'validating')"
            self._database.change(sql, batch_id, tenant, now(), written)
        batch = self.get(tenant, batch_id)
        assert batch is not None
        return batch

    def get(self, tenant: str, batch_id: str) -> Batch | None:
        row = self._database.row("SELECT * FROM batches WHERE id = ? AND tenant = ?", batch_id, tenant)
        return Batch.of(row) if row is not None else None

    def page(self, tenant: str, after: str | None, limit: int) -> Page:
        return self._database.page("batches", {"tenant": tenant}, after, limit, newest_first=True)

    def unfinished(self) -> list[Batch]:
        """Oldest first."""
        places = ", ".join("?" for _ in FINISHED)
        rows = self._database.rows(f"SELECT * FROM batches WHERE status NOT IN ({places}) ORDER BY seq", *FINISHED)
        return list(map(Batch.of, rows))

    def uses(self, file_id: str) -> Batch | None:
        """A batch that is not finished and reads a file."""
        return next((batch for batch in self.unfinished() if batch.request["input_file_id"] == file_id), None)

    def count(self, batch: Batch, total: int, completed: int, failed: int) -> None:
        sql = "UPDATE batches SET total = ?, completed = ?, failed = ? WHERE id = ?"
        self._database.change(sql, total, completed, failed, batch.id)

    def become(self, batch: Batch, status: Status, **values: Any) -> bool:
        """Whether it has become that now. ``values``: of columns. What may not follow the batch's state changes
        nothing."""
        with self._database.transaction():
            now_ = self.get(batch.tenant, batch.id)
            if now_ is None or status not in NEXT.get(now_.status, ()):
                return False
            columns = {"status": status, "times": json.dumps({**now_.times, status: now()}), **values}
            sets = ", ".join(f"{name} = ?" for name in columns)
            self._database.change(f"UPDATE batches SET {sets} WHERE id = ?", *columns.values(), batch.id)
            return True
