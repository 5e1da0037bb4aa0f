"""/v1/responses."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response

from tunewright.server.chat import endpoints
from tunewright.server.chat.endpoints import rendered
from tunewright.server.chat.responses import ResponseReply, ResponseRequest
from tunewright.server.errors import ApiError
from tunewright.server.routes.chat import begun
from tunewright.server.routes.common import Tenant, The, unless_gone
from tunewright.server.shapes import JsonObject

router = APIRouter(prefix="/v1/responses", tags=["responses"])


@router.post("", response_model=None)
async def create_response(the: The, tenant: Tenant, http: Request, request: ResponseRequest) -> JsonObject | Response:
    served = await asyncio.to_thread(the.catalogue.get, tenant, request.model)
    reply = ResponseReply.to(request, await rendered(endpoints.chat, served, tenant, request.as_chat()))
    return await begun(http, reply.stream()) if request.stream else await unless_gone(http, reply.complete())


@router.get("/{response_id}")
@router.delete("/{response_id}")
@router.post("/{response_id}/cancel")
@router.get("/{response_id}/input_items")
def absent(tenant: Tenant, response_id: str) -> None:
    """Responses are not stored."""
    raise ApiError(404, "response_not_found", "Responses are not stored: nothing can be asked about them later.")
