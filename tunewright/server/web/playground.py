"""The playground: one question to the base, to the base with the instruction, and to a tuned model, side by side."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, StringConstraints

from tunewright.server.errors import ApiError
from tunewright.server.routes.common import The
from tunewright.server.shapes import JsonObject
from tunewright.server.store.database import new_id, now
from tunewright.server.store.files import OverQuota
from tunewright.server.web.pages import Visitor, shown

router = APIRouter(include_in_schema=False)
Content = Annotated[str, StringConstraints(max_length=100_000)]


@router.get("/playground")
def playground(the: The, tenant: Visitor, model: str = "") -> Response:
    tuned = [m.id for m in the.catalogue.listed(tenant) if m.id not in the.bases]
    chosen = model if model in tuned else next(iter(tuned), "")
    instruction, base = "", next(iter(the.bases))
    if chosen:
        try:
            served = the.catalogue.get(tenant, chosen)
            instruction, base = served.instruction or "", served.base.name
        except ApiError:
            chosen = ""
    values = {"tuned": tuned, "chosen": chosen, "instruction": instruction, "base": base}
    return shown("playground.html.j2", tenant, "playground", values)


class KeptRow(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, StringConstraints(max_length=300)]
    system: Content = ""
    user: Content
    answer: Content


@router.post("/playground/keep")
def keep(the: The, tenant: Visitor, row: KeptRow) -> JsonObject:
    """Store a question with an answer, perhaps a corrected one, as a stored chat."""
    if not the.files.room(tenant):
        raise OverQuota(the.settings.quota)
    head = [{"role": "system", "content": row.system}] if row.system else []
    message = {"role": "assistant", "content": row.answer, "refusal": None}
    response = {
        "id": new_id("chatcmpl-"),
        "object": "chat.completion",
        "created": now(),
        "model": row.model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
    }
    the.completions.add(tenant, [*head, {"role": "user", "content": row.user}], response, {"from": "playground"})
    return {"id": response["id"]}
