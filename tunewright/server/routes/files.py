"""/v1/files and /v1/uploads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, UploadFile
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field, StringConstraints

from tunewright.server.errors import ApiError, bad, not_found
from tunewright.server.routes.common import After, Tenant, The, listed
from tunewright.server.service import Service
from tunewright.server.shapes import JsonObject
from tunewright.server.store.database import new_id, now
from tunewright.server.store.files import MOST_PARTS, PIECE, OverQuota, StoredFile, UploadEnded, of_row

router = APIRouter(prefix="/v1", tags=["files"])
Purpose = Literal["fine-tune", "batch", "user_data", "evals", "assistants", "vision"]
Name = Annotated[str, StringConstraints(min_length=1, max_length=255)]
Seconds = Annotated[int, Field(ge=3600, le=2_592_000)]
UPLOAD_SECONDS = 3600


class ExpiresAfter(BaseModel):
    anchor: Literal["created_at"]
    seconds: Seconds


class UploadRequest(BaseModel):
    filename: Name
    purpose: Purpose
    bytes: Annotated[int, Field(ge=1, le=1 << 40)]
    mime_type: Annotated[str, StringConstraints(max_length=255)] = ""
    expires_after: ExpiresAfter | None = None


class CompleteRequest(BaseModel):
    part_ids: Annotated[
        list[Annotated[str, StringConstraints(max_length=64)]], Field(min_length=1, max_length=MOST_PARTS)
    ]
    md5: Annotated[str, StringConstraints(max_length=64)] | None = None


@router.post("/files")
def create_file(
    the: The,
    tenant: Tenant,
    file: UploadFile,
    purpose: Annotated[Purpose, Form()],
    anchor: Annotated[Literal["created_at"] | None, Form(alias="expires_after[anchor]")] = None,
    seconds: Annotated[int | None, Form(alias="expires_after[seconds]", ge=3600, le=2_592_000)] = None,
) -> JsonObject:
    name = file.filename or "file.jsonl"
    if len(name) > 255:
        raise bad("invalid_value", "file: its name has more than 255 characters.", "file")
    if (anchor is None) != (seconds is None):
        raise bad("invalid_value", "expires_after needs an anchor and seconds.", "expires_after")
    return the.files.add(tenant, name, purpose, file.file, seconds).to_json()


@router.get("/files")
def list_files(
    the: The,
    tenant: Tenant,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: Annotated[str | None, Query(max_length=64)] = None,
) -> JsonObject:
    the.files.remove_expired()
    page = the.files.page(tenant, purpose, after, limit, order == "desc")
    return listed(page, lambda row: of_row(row).to_json())


@router.get("/files/{file_id}")
def get_file(the: The, tenant: Tenant, file_id: str) -> JsonObject:
    return file_of(the, tenant, file_id).to_json()


@router.get("/files/{file_id}/content", response_class=FileResponse)
def get_content(the: The, tenant: Tenant, file_id: str) -> FileResponse:
    file = file_of(the, tenant, file_id)
    return FileResponse(the.files.path(file), media_type="application/octet-stream", filename=file.filename)


@router.delete("/files/{file_id}")
def delete_file(the: The, tenant: Tenant, file_id: str) -> JsonObject:
    file = file_of(the, tenant, file_id)
    if (job := the.jobs.uses(file_id)) is not None:
        raise bad("file_in_use", f"The job {job.id} reads this file; cancel it first.", "file_id")
    if (batch := the.batches.uses(file_id)) is not None:
        raise bad("file_in_use", f"The batch {batch.id} reads this file; cancel it first.", "file_id")
    the.files.remove(file)
    return {"id": file_id, "object": "file", "deleted": True}


def file_of(the: Service, tenant: str, file_id: str) -> StoredFile:
    """Raises ApiError 404."""
    the.files.remove_expired()
    file = the.files.get(tenant, file_id)
    if file is None:
        raise not_found("file", file_id)
    return file


@router.post("/uploads")
def create_upload(the: The, tenant: Tenant, request: UploadRequest) -> JsonObject:
    if request.bytes > the.files.room(tenant):
        raise OverQuota(the.settings.quota)
    upload, created = new_id("upload_"), now()
    seconds = request.expires_after.seconds if request.expires_after else None
    the.database.change(
        "INSERT INTO uploads (id, tenant, filename, purpose, bytes, created_at, expires_at, status, expires_after)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, 'pending', ?)",
        *(upload, tenant, request.filename, request.purpose, request.bytes, created, created + UPLOAD_SECONDS, seconds),
    )
    return _upload_json(the, _upload(the, tenant, upload))


@router.post("/uploads/{upload_id}/parts")
def add_part(the: The, tenant: Tenant, upload_id: str, data: UploadFile) -> JsonObject:
    upload = _pending(the, tenant, upload_id)
    try:
        part, created = the.files.add_part(tenant, upload_id, data.file, upload["bytes"])
    except UploadEnded:
        message = f"The upload has ended, or has {MOST_PARTS} parts already."
        raise bad("invalid_value", message, "upload_id") from None
    return {"id": part, "object": "upload.part", "created_at": created, "upload_id": upload_id}


@router.post("/uploads/{upload_id}/complete")
def complete_upload(the: The, tenant: Tenant, upload_id: str, request: CompleteRequest) -> JsonObject:
    """A repeated request gets the same answer."""
    upload = _upload(the, tenant, upload_id)
    if upload["status"] == "completed":
        return _upload_json(the, upload)
    _pending(the, tenant, upload_id)
    known = {row["id"] for row in the.database.rows("SELECT id FROM parts WHERE upload = ?", upload_id)}
    for part in request.part_ids:
        if part not in known:
            raise not_found("part", part)
    if len(known.intersection(request.part_ids)) < len(request.part_ids):
        raise bad("invalid_value", "A part is named twice.", "part_ids")

    digest = hashlib.md5(usedforsecurity=False)
    file_id = new_id("file-")
    expires = now() + upload["expires_after"] if upload["expires_after"] else None
    file = StoredFile(file_id, tenant, upload["filename"], upload["purpose"], upload["bytes"], "", now(), expires)
    path = the.files.path(file)
    try:
        size, sha256 = the.files.write(path.name, _joined(the, request.part_ids, digest), 1 << 62)
    except FileNotFoundError:  # another request has completed or cancelled it meanwhile
        upload = _upload(the, tenant, upload_id)
        if upload["status"] == "pending":
            raise
        return _upload_json(the, upload)
    try:
        if size != upload["bytes"]:
            raise bad("invalid_value", f"The parts have {size} bytes, the upload {upload['bytes']}.", "part_ids")
        if request.md5 is not None and request.md5.lower() != digest.hexdigest():
            raise bad("invalid_value", f"The md5 of the parts is {digest.hexdigest()}.", "md5")
    except ApiError:
        path.unlink()
        raise
    with the.database.transaction():
        sql = "UPDATE uploads SET status = 'completed', file = ? WHERE id = ? AND status = 'pending'"
        if not the.database.change(sql, file_id, upload_id):  # by another request, meanwhile
            path.unlink()
            return _upload_json(the, _upload(the, tenant, upload_id))
        the.files.insert(StoredFile(**{**vars(file), "sha256": sha256}))
    the.files.remove_parts(upload_id)
    return _upload_json(the, _upload(the, tenant, upload_id))


def _joined(the: Service, parts: list[str], digest: hashlib._Hash) -> Iterator[bytes]:
    """The parts one after another; ``digest`` is updated with them."""
    for part in parts:
        with open(the.files.part(part), "rb") as stream:
            while piece := stream.read(PIECE):
                digest.update(piece)
                yield piece


@router.post("/uploads/{upload_id}/cancel")
def cancel_upload(the: The, tenant: Tenant, upload_id: str) -> JsonObject:
    _pending(the, tenant, upload_id)
    sql = "UPDATE uploads SET status = 'cancelled' WHERE id = ? AND status = 'pending'"
    the.database.change(sql, upload_id)
    the.files.remove_parts(upload_id)
    return _upload_json(the, _upload(the, tenant, upload_id))


def _upload(the: Service, tenant: str, upload_id: str) -> Any:
    the.files.remove_expired()
    row = the.database.row("SELECT * FROM uploads WHERE id = ? AND tenant = ?", upload_id, tenant)
    if row is None:
        raise not_found("upload", upload_id)
    return row


def _pending(the: Service, tenant: str, upload_id: str) -> Any:
    row = _upload(the, tenant, upload_id)
    if row["status"] != "pending":
        raise bad("invalid_value", f"The upload is {row['status']}.", "upload_id")
    return row


def _upload_json(the: Service, row: Any) -> JsonObject:
    file = the.files.get(row["tenant"], row["file"]) if row["file"] else None
    names = ("id", "bytes", "created_at", "expires_at", "filename", "purpose", "status")
    return {"object": "upload", **{name: row[name] for name in names}, "file": file.to_json() if file else None}
