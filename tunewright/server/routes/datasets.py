"""Paths of tunewright's own: rows from stored chats."""

from __future__ import annotations

import json

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from tunewright.server.errors import bad
from tunewright.server.jobs.request import Metadata
from tunewright.server.routes.common import Tenant, The
from tunewright.server.shapes import JsonObject
from tunewright.server.store.completions import training_row

router = APIRouter(prefix="/tunewright", tags=["tunewright"])
MOST_ROWS = 100_000


class FromCompletions(BaseModel):
    """Which stored chats: of a model, with values of metadata."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = None
    metadata: Metadata | None = None
    filename: str = "stored-chats.jsonl"


@router.post("/files/from_completions")
def from_completions(the: The, tenant: Tenant, request: FromCompletions) -> JsonObject:
    """A file of training rows, whose answers are those that were given, without those that were cut."""
    page = the.completions.page(tenant, (request.model, request.metadata or {}), None, MOST_ROWS, newest_first=False)
    rows = [row for row in map(training_row, page.rows) if row is not None]
    if not rows:
        raise bad("no_rows", "No stored chat matches whose answer is complete.", "metadata")
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    made = the.files.add(tenant, request.filename, "fine-tune", lines.encode()).to_json()
    return {**made, "tunewright": {"rows": len(rows), "cut_answers_left_out": len(page.rows) - len(rows)}}
