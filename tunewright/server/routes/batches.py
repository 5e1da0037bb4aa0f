"""/v1/batches."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, StringConstraints

from tunewright.server.errors import bad, not_found
from tunewright.server.jobs.request import Metadata
from tunewright.server.routes.common import After, Limit, Tenant, The, listed, repeated_since
from tunewright.server.routes.files import file_of
from tunewright.server.service import Service
from tunewright.server.shapes import JsonObject
from tunewright.server.store.batches import FINISHED, Batch
from tunewright.server.store.files import OverQuota

router = APIRouter(prefix="/v1/batches", tags=["batches"])


class BatchRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    input_file_id: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses"]
    completion_window: Literal["24h"]
    metadata: Metadata | None = None


@router.post("")
def create_batch(the: The, tenant: Tenant, http: Request, request: BatchRequest) -> JsonObject:
    if file_of(the, tenant, request.input_file_id).purpose != "batch":
        raise bad("invalid_value", "input_file_id: its purpose is not batch.", "input_file_id")
    if not the.files.room(tenant):
        raise OverQuota(the.settings.quota)
    return the.batches.add(tenant, request.model_dump(mode="json"), repeated_since(http)).to_json()


@router.get("")
def list_batches(the: The, tenant: Tenant, after: After = None, limit: Limit = 20) -> JsonObject:
    return listed(the.batches.page(tenant, after, limit), lambda row: Batch.of(row).to_json())


@router.get("/{batch_id}")
def get_batch(the: The, tenant: Tenant, batch_id: str) -> JsonObject:
    return _batch(the, tenant, batch_id).to_json()


@router.post("/{batch_id}/cancel")
def cancel_batch(the: The, tenant: Tenant, batch_id: str) -> JsonObject:
    """Lines that are being answered are still answered."""
    batch = _batch(the, tenant, batch_id)
    if batch.status in FINISHED:
        raise bad("invalid_value", f"The batch has ended: {batch.status}.", "batch_id")
    the.batches.become(batch, "cancelling")
    return _batch(the, tenant, batch_id).to_json()


def _batch(the: Service, tenant: str, batch_id: str) -> Batch:
    batch = the.batches.get(tenant, batch_id)
    if batch is None:
        raise not_found("batch", batch_id)
    return batch
