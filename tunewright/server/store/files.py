"""Files that tenants upload, and those that jobs and batches leave for them."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tunewright.core.run_folder import make_folder, private, sync_folder
from tunewright.server.shapes import JsonObject
from tunewright.server.store.database import Database, Page, new_id, now

PIECE = 1 << 20
MOST_PARTS = 1000  # of an upload
EXPIRED = """
    SELECT * FROM files WHERE expires_at <= ? AND NOT EXISTS (
        SELECT 1 FROM jobs WHERE status IN ('validating_files', 'queued', 'running') AND instr(request, files.id)
    ) AND NOT EXISTS (
        SELECT 1 FROM batches WHERE status IN ('validating', 'in_progress', 'cancelling') AND instr(request, files.id)
    )
"""
ENDS = (".jsonl", ".json", ".csv", ".parquet", ".txt", ".md")


class OverQuota(Exception):
    """``most``: bytes that a tenant may store."""

    def __init__(self, most: int) -> None:
        super().__init__(f"at most {most} bytes")
        self.most = most


class UploadEnded(Exception):
    """It was completed or cancelled while a part was received, or has as many parts as it may have."""


@dataclass(frozen=True)
class StoredFile:
    """``parent``: the file that this one was made from, by editing its rows."""

    id: str
    tenant: str
    filename: str
    purpose: str
    bytes: int
    sha256: str
    created_at: int
    expires_at: int | None = None
    parent: str | None = None

    def to_json(self) -> JsonObject:
        """As OpenAI's API has it; ``status`` is deprecated there, and required by its clients."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "tunewright": {"sha256": self.sha256, "parent": self.parent},
        }


def of_row(row: sqlite3.Row) -> StoredFile:
    return StoredFile(**{k: row[k] for k in row.keys() if k != "seq"})  # noqa: SIM118


class Files:
    """``quota``: bytes of a tenant's files, parts of uploads, stored chats and run folders, together."""

    def __init__(self, database: Database, folder: Path, quota: int) -> None:
        self._database, self._folder, self._quota = database, folder, quota
        make_folder(folder)

    def remove_leftovers(self) -> None:
        """Content without a record, of a server that was killed between the two; only when no other uses the folder."""
        if not self._database.rows("SELECT 1 FROM files LIMIT 1"):  # perhaps another database than the folder's
            return
        known = {self.path(of_row(row)).name for row in self._database.rows("SELECT * FROM files")}
        known |= {row["id"] for row in self._database.rows("SELECT id FROM parts")}
        for path in self._folder.iterdir():
            if path.name not in known and path.name.startswith((".file-", ".part_", "file-", "part_")):
                path.unlink()

    def path(self, file: StoredFile) -> Path:
        """Its content. The end of the name says how rows are read."""
        return self._folder / _stored_name(file.id, file.filename)

    def part(self, part: str) -> Path:
        return self._folder / part

    def room(self, tenant: str) -> int:
        """Bytes that the tenant may still store."""
        of_files = "SELECT COALESCE(SUM(bytes), 0) AS n FROM files WHERE tenant = ?"
        of_parts = """SELECT COALESCE(SUM(p.bytes), 0) AS n FROM parts p JOIN uploads u ON p.upload = u.id
                      WHERE u.tenant = ? AND u.status = 'pending'"""
        of_chats = "SELECT COALESCE(SUM(bytes), 0) AS n FROM completions WHERE tenant = ?"
        of_runs = "SELECT COALESCE(SUM(run_bytes), 0) AS n FROM jobs WHERE tenant = ?"
        sums = (of_files, of_parts, of_chats, of_runs)
        used: int = sum(row["n"] for sql in sums for row in self._database.rows(sql, tenant))
        return max(0, self._quota - used)

    def add(
        self,
        tenant: str,
        filename: str,
        purpose: str,
        content: BinaryIO | bytes,
        seconds: int | None = None,
        parent: str | None = None,
    ) -> StoredFile:
        """Raises OverQuota, OSError. ``seconds``: until it expires."""
        file_id, created = new_id("file-"), now()
        size, sha256 = self.write(_stored_name(file_id, filename), content, self.room(tenant))
        expires = created + seconds if seconds else None
        file = StoredFile(file_id, tenant, filename, purpose, size, sha256, created, expires, parent)
        with self._within_quota(tenant, size, self.path(file)):
            self.insert(file)
        return file

    def add_beyond_quota(
        self, tenant: str, filename: str, purpose: str, content: BinaryIO | bytes, of: str
    ) -> StoredFile:
        """What a job or a batch has left, ``of`` this id. Stored again, because the server was killed or the disk was
        full before that was noted, it is the same file. Raises OSError."""
        file_id = f"file-{hashlib.sha256(f'{of} {filename}'.encode()).hexdigest()[:24]}"
        size, sha256 = self.write(_stored_name(file_id, filename), content, 1 << 62)
        file = StoredFile(file_id, tenant, filename, purpose, size, sha256, now(), None)
        with self._database.transaction():
            self._database.change("DELETE FROM files WHERE id = ?", file_id)
            self.insert(file)
        return file

    def insert(self, file: StoredFile) -> None:
        """The record of a file whose content is in its place."""
        self._database.change(
            "INSERT INTO files (id, tenant, filename, purpose, bytes, sha256, created_at, expires_at, parent)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(getattr(file, name) for name in StoredFile.__dataclass_fields__),
        )

    def add_part(self, tenant: str, upload: str, content: BinaryIO, most: int) -> tuple[str, int]:
        """The id of a part of an upload, and when it was made. Raises OverQuota, UploadEnded,
        OSError."""
        part, created = new_id("part_"), now()
        size, _ = self.write(part, content, min(most, self.room(tenant)))
        with self._within_quota(tenant, size, self.part(part)):
            pending = "SELECT COUNT(p.id) AS n FROM uploads u LEFT JOIN parts p ON p.upload = u.id WHERE u.id = ? AND"
            row = self._database.row(f"{pending} u.status = 'pending' GROUP BY u.id", upload)
            if row is None or row["n"] >= MOST_PARTS:
                raise UploadEnded
            sql = "INSERT INTO parts (id, upload, bytes, created_at) VALUES (?, ?, ?, ?)"
            self._database.change(sql, part, upload, size, created)
        return part, created

    @contextmanager
    def _within_quota(self, tenant: str, size: int, path: Path) -> Iterator[None]:
        """A transaction that records received content, if there is still room for it; else the content is removed."""
        try:
            with self._database.transaction():
                if size > self.room(tenant):
                    raise OverQuota(self._quota)
                yield
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def write(self, name: str, content: BinaryIO | bytes | Iterable[bytes], most: int) -> tuple[int, str]:
        """Bytes and hash of the content, in a file that is complete or absent. Raises OverQuota, OSError."""
        temporary, digest, size = self._folder / f".{name}", hashlib.sha256(), 0
        try:
            with open(temporary, "wb", opener=private) as out:
                for piece in _pieces(content):
                    size += len(piece)
                    if size > most:
                        raise OverQuota(self._quota)
                    digest.update(piece)
                    out.write(piece)
                out.flush()
                os.fsync(out.fileno())
            temporary.rename(self._folder / name)
            sync_folder(self._folder)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return size, digest.hexdigest()

    def get(self, tenant: str, file_id: str) -> StoredFile | None:
        row = self._database.row("SELECT * FROM files WHERE id = ? AND tenant = ?", file_id, tenant)
        return of_row(row) if row is not None else None

    def page(self, tenant: str, purpose: str | None, after: str | None, limit: int, newest_first: bool) -> Page:
        where = {"tenant": tenant} | ({"purpose": purpose} if purpose else {})
        return self._database.page("files", where, after, limit, newest_first)

    def remove(self, file: StoredFile) -> None:
        self._database.change("DELETE FROM files WHERE id = ?", file.id)
        self.path(file).unlink(missing_ok=True)

    def remove_expired(self) -> None:
        """Those that no unfinished job or batch reads."""
        for row in self._database.rows(EXPIRED, now()):
            self.remove(of_row(row))
        for row in self._database.rows("SELECT id FROM uploads WHERE status = 'pending' AND expires_at <= ?", now()):
            self._database.change("UPDATE uploads SET status = 'expired' WHERE id = ?", row["id"])
            self.remove_parts(row["id"])

    def remove_parts(self, upload: str) -> None:
        for row in self._database.rows("SELECT id FROM parts WHERE upload = ?", upload):
            self.part(row["id"]).unlink(missing_ok=True)
        self._database.change("DELETE FROM parts WHERE upload = ?", upload)

    def free(self) -> int:
        """Bytes of the disk."""
        return shutil.disk_usage(self._folder).free


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; 0 if there is none. Those that vanish meanwhile are left out."""
    total = 0
    for file in [path] if path.is_file() else path.rglob("*"):
        with suppress(FileNotFoundError):
            total += file.stat().st_size if file.is_file() else 0
    return total


def _stored_name(file_id: str, filename: str) -> str:
    end = PurePosixPath(filename).suffix.lower()
    return file_id + (end if end in ENDS else ".jsonl")


def _pieces(content: BinaryIO | bytes | Iterable[bytes]) -> Iterable[bytes]:
    if isinstance(content, bytes):
        return [content]
    if hasattr(content, "read"):
        return iter(lambda: content.read(PIECE), b"")
    return content
