"""The database: one SQLite file in WAL mode, flushed at every commit, so that what was answered with 200 is kept.

Its version is the number of migrations that it has seen. They are only ever added to.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from tunewright.core.errors import RunError
from tunewright.server.shapes import JsonObject

MIGRATIONS = (
    """
    CREATE TABLE files (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, tenant TEXT NOT NULL, filename TEXT NOT NULL,
        purpose TEXT NOT NULL, bytes INTEGER NOT NULL, sha256 TEXT NOT NULL, created_at INTEGER NOT NULL,
        expires_at INTEGER, parent TEXT
    );
    CREATE TABLE uploads (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, tenant TEXT NOT NULL, filename TEXT NOT NULL,
        purpose TEXT NOT NULL, bytes INTEGER NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL,
        status TEXT NOT NULL, file TEXT, expires_after INTEGER
    );
    CREATE TABLE parts (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, upload TEXT NOT NULL, bytes INTEGER NOT NULL,
        created_at INTEGER NOT NULL
    );
    CREATE TABLE jobs (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, tenant TEXT NOT NULL,
        created_at INTEGER NOT NULL, request TEXT NOT NULL, digest TEXT NOT NULL, status TEXT NOT NULL,
        wanted TEXT NOT NULL DEFAULT 'run', attempt INTEGER NOT NULL DEFAULT 0, deaths INTEGER NOT NULL DEFAULT 0,
        started_at INTEGER, finished_at INTEGER, error TEXT, model_id TEXT, trained_tokens INTEGER,
        result_file TEXT, model_deleted INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX jobs_by_status ON jobs (status, seq);
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, job TEXT NOT NULL, source TEXT NOT NULL,
        created_at INTEGER NOT NULL, level TEXT NOT NULL, message TEXT NOT NULL, type TEXT NOT NULL, data TEXT,
        UNIQUE (job, source)
    );
    CREATE TABLE completions (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, tenant TEXT NOT NULL,
        created_at INTEGER NOT NULL, model TEXT NOT NULL, messages TEXT NOT NULL, response TEXT NOT NULL,
        metadata TEXT NOT NULL
    );
    CREATE TABLE batches (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, tenant TEXT NOT NULL,
        created_at INTEGER NOT NULL, request TEXT NOT NULL, status TEXT NOT NULL, total INTEGER NOT NULL DEFAULT 0,
        completed INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0, output_file TEXT, error_file TEXT,
        times TEXT NOT NULL DEFAULT '{}', errors TEXT
    );
    """,
    """
    ALTER TABLE completions ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
    UPDATE completions SET bytes = length(CAST(messages || response || metadata AS BLOB));
    CREATE INDEX completions_of_tenant ON completions (tenant, bytes);
    """,
    """
    ALTER TABLE completions ADD COLUMN tools TEXT;
    CREATE INDEX jobs_by_model ON jobs (tenant, model_id);
    """,
    """
    ALTER TABLE jobs ADD COLUMN run_bytes INTEGER NOT NULL DEFAULT 0;
    """,
)


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())


def new_id(prefix: str) -> str:
    return prefix + secrets.token_hex(12)


class Database:
    """One connection for all threads; a transaction holds its lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
        path.chmod(0o600)
        self._connection.row_factory = sqlite3.Row
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._migrate()

    def _migrate(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise RunError(
                "RUN_DAMAGED",
                f"the database has version {version}, and this tunewright knows {len(MIGRATIONS)}.",
                where=str(self.path),
                fix="use the tunewright that wrote it, or a newer one.",
            )
        for number in range(version, len(MIGRATIONS)):
            script = f"BEGIN IMMEDIATE; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;"
            self._connection.executescript(script)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing. May be nested: the outer one commits."""
        with self._lock:
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.OperationalError):  # a full disk has ended the transaction already
                    self._connection.execute("ROLLBACK")
                raise

    def change(self, sql: str, *values: Any) -> int:
        """How many rows were changed."""
        with self._lock:
            return self._connection.execute(sql, values).rowcount

    def rows(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(sql, values).fetchall()

    def row(self, sql: str, *values: Any) -> sqlite3.Row | None:
        return next(iter(self.rows(sql, *values)), None)

    def page(self, table: str, where: JsonObject, after: str | None, limit: int, newest_first: bool) -> Page:
        """Rows of a table that have all of these values, after the one whose id is ``after``, in the order in which
        they were added, or the reverse. An ``after`` that does not exist gives an empty page."""
        conditions = [f"{name} = ?" for name in where] or ["1 = 1"]
        values = list(where.values())
        if after is not None:
            row = self.row(f"SELECT seq FROM {table} WHERE id = ? AND {' AND '.join(conditions)}", after, *values)
            conditions.append(f"seq {'<' if newest_first else '>'} ?")
            values.append(row["seq"] if row is not None else (-1 if newest_first else 1 << 62))
        order = "DESC" if newest_first else "ASC"
        sql = f"SELECT * FROM {table} WHERE {' AND '.join(conditions)} ORDER BY seq {order} LIMIT ?"
        listed = self.rows(sql, *values, limit + 1)
        return Page(listed[:limit], len(listed) > limit)

    def back_up(self, target: Path) -> None:
        """A copy that is consistent while the server runs."""
        with self._lock, closing(sqlite3.connect(target)) as copy:
            self._connection.backup(copy)
        target.chmod(0o600)

    def close(self) -> None:
        with self._lock:
            self._connection.close()


class Page:
    """``more``: whether others follow."""

    def __init__(self, rows: Sequence[sqlite3.Row], more: bool) -> None:
        self.rows, self.more = rows, more
