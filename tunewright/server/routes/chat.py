"""/v1/chat/completions, the stored ones, and /v1/completions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel

from tunewright.server.chat import answers, endpoints
from tunewright.server.chat.completions import Reply
from tunewright.server.chat.endpoints import rendered
from tunewright.server.chat.request import ChatRequest, CompletionRequest
from tunewright.server.errors import bad, not_found
from tunewright.server.jobs.request import Metadata
from tunewright.server.routes.common import InPages, Tenant, The, list_json, listed, unless_gone
from tunewright.server.service import Service
from tunewright.server.shapes import JsonObject
from tunewright.server.store.completions import stored_json
from tunewright.server.store.files import OverQuota

router = APIRouter(prefix="/v1", tags=["chat"])


class UpdateRequest(BaseModel):
    metadata: Metadata


@router.post("/chat/completions", response_model=None)
async def create_chat(the: The, tenant: Tenant, http: Request, request: ChatRequest) -> JsonObject | Response:
    served = await asyncio.to_thread(the.catalogue.get, tenant, request.model)
    reply = await rendered(endpoints.chat, served, tenant, request)
    if request.store and not await asyncio.to_thread(the.files.room, tenant):
        raise OverQuota(the.settings.quota)
    if request.stream:
        return await begun(http, _stored_stream(the, tenant, request, reply))

    async def work() -> JsonObject:
        done = reply.chat(await answers.complete(reply.asked))
        if request.store:
            the.completions.add(tenant, [*request.messages], done, request.metadata or {}, request.used_tools)
        return done

    return await unless_gone(http, work())


async def _stored_stream(the: Service, tenant: str, request: ChatRequest, reply: Reply) -> AsyncGenerator[bytes, None]:
    async for chunk in reply.chat_stream(request.usage_in_stream):
        yield chunk
    if request.store and reply.done:
        done = reply.chat(sorted(reply.done, key=lambda answer: answer.index))
        the.completions.add(tenant, [*request.messages], done, request.metadata or {}, request.used_tools)


@router.get("/chat/completions")
def list_stored(the: The, tenant: Tenant, http: Request, paging: InPages, model: str | None = None) -> JsonObject:
    which = (model, wanted(http))
    page = the.completions.page(tenant, which, paging.after, paging.limit, paging.order == "desc")
    return listed(page, stored_json)


def wanted(http: Request) -> dict[str, str]:
    """Values of metadata in the query: metadata[key]=value."""
    keys = (key for key in http.query_params if key.startswith("metadata[") and key.endswith("]"))
    return {key[len("metadata[") : -1]: http.query_params[key] for key in keys}


@router.get("/chat/completions/{completion_id}")
def get_stored(the: The, tenant: Tenant, completion_id: str) -> JsonObject:
    row = the.completions.get(tenant, completion_id)
    if row is None:
        raise not_found("chat_completion", completion_id)
    return stored_json(row)


@router.post("/chat/completions/{completion_id}")
def update_stored(the: The, tenant: Tenant, completion_id: str, request: UpdateRequest) -> JsonObject:
    get_stored(the, tenant, completion_id)
    the.completions.update(tenant, completion_id, request.metadata)
    return get_stored(the, tenant, completion_id)


@router.delete("/chat/completions/{completion_id}")
def delete_stored(the: The, tenant: Tenant, completion_id: str) -> JsonObject:
    get_stored(the, tenant, completion_id)
    the.completions.remove(tenant, completion_id)
    return {"id": completion_id, "object": "chat.completion.deleted", "deleted": True}


@router.get("/chat/completions/{completion_id}/messages")
def list_messages(the: The, tenant: Tenant, completion_id: str, paging: InPages) -> JsonObject:
    row = the.completions.get(tenant, completion_id)
    if row is None:
        raise not_found("chat_completion", completion_id)
    messages = [{"id": f"{completion_id}-{n}", "name": None, **m} for n, m in enumerate(json.loads(row["messages"]))]
    messages = messages[::-1] if paging.order == "desc" else messages
    ids = [m["id"] for m in messages]
    if paging.after is not None and paging.after not in ids:
        raise bad("invalid_value", f"after: there is no message {paging.after}.", "after")
    start = ids.index(paging.after) + 1 if paging.after is not None else 0
    data = messages[start : start + paging.limit]
    return list_json(data, start + paging.limit < len(messages))


@router.post("/completions", response_model=None)
async def create_completion(
    the: The, tenant: Tenant, http: Request, request: CompletionRequest
) -> JsonObject | Response:
    served = await asyncio.to_thread(the.catalogue.get, tenant, request.model)
    asked = await rendered(endpoints.completions, served, tenant, request)
    return await begun(http, asked.stream()) if request.stream else await unless_gone(http, asked.complete())


async def begun(http: Request, chunks: AsyncGenerator[bytes, None]) -> Response:
    """The stream, once its first chunk is there: until then, an error is a response with a status of its own."""
    first = await unless_gone(http, anext(chunks))
    if isinstance(first, Response):
        return first

    async def every() -> AsyncGenerator[bytes, None]:
        yield first
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    return streamed(every())


def streamed(chunks: AsyncGenerator[bytes, None]) -> StreamingResponse:
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return StreamingResponse(chunks, media_type="text/event-stream", headers=headers)
