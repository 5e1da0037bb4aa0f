"""What routes have in common: the service, the tenant, and pages of lists."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Depends, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field, StringConstraints

from tunewright.server.errors import ApiError, no_token
from tunewright.server.service import Service
from tunewright.server.shapes import JsonObject
from tunewright.server.store.database import Page, now

GONE = 499  # the client has left; nobody reads the response
POLL_SECONDS = 0.25
REPEATED_SECONDS = 600  # a client repeats a POST by itself, without saying that it is the same
T = TypeVar("T")


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def tenant_of(request: Request) -> str:
    """The tenant whose token the request carries: `app.Gate` has looked."""
    tenant: str | None = request.scope.get("tenant")
    if tenant is None:
        raise no_token()
    return tenant


The = Annotated[Service, Depends(service_of)]
Tenant = Annotated[str, Depends(tenant_of)]
After = Annotated[str | None, Query(max_length=100)]
Limit = Annotated[int, Query(ge=1, le=100)]


class Paging(BaseModel):
    """Of a list that can be read in both orders."""

    after: Annotated[str, StringConstraints(max_length=100)] | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "asc"


def repeated_since(request: Request) -> int | None:
    """From when an equal request is the same one; None if this is not a repeated one."""
    return now() - REPEATED_SECONDS if request.headers.get("x-stainless-retry-count", "0") != "0" else None


InPages = Annotated[Paging, Query()]


def listed(page: Page, of: Callable[[Any], JsonObject]) -> JsonObject:
    """A page as OpenAI's API has it; the last id is the cursor of the next page."""
    return list_json([of(row) for row in page.rows], page.more)


def list_json(data: list[Any], more: bool) -> JsonObject:
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, "has_more": more, **ends}


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | Response:
    """The result of ``work``, which is cancelled when the client leaves."""
    task = asyncio.create_task(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=POLL_SECONDS)
            if not task.done() and await request.is_disconnected():
                return Response(status_code=GONE)
        return task.result()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, ApiError):
            await task
