"""The server as an ASGI application: routes, and around them identity, limits and errors."""

from __future__ import annotations

import errno
import json
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunewright import __version__
from tunewright.core.errors import TunewrightError
from tunewright.server.access import COOKIE
from tunewright.server.errors import ApiError, no_token, not_found, of_error, of_validation, unexpected
from tunewright.server.routes import batches, chat, datasets, files, fine_tuning, models, operations, responses
from tunewright.server.service import LOCAL_HOSTS, Service
from tunewright.server.store.database import new_id
from tunewright.server.store.files import OverQuota
from tunewright.server.web import data, home, jobs, playground
from tunewright.server.web.pages import LoginNeeded, see

log = logging.getLogger("tunewright.server")
# What OpenAI has and this server has not: 501, so that a client can tell it from a wrong path.
ABSENT = ("/v1/evals", "/v1/embeddings", "/v1/moderations", "/v1/images", "/v1/audio", "/v1/assistants", "/v1/threads")
ROUTES = (files, fine_tuning, models, chat, responses, batches, datasets, operations, home, jobs, data, playground)
OPEN = ("/login", "/logout", "/health")  # without a token
LARGEST_JSON, LARGEST_LOGIN = 8 << 20, 64 << 10
HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "same-origin", "cache-control": "no-store"}


def create_app(service: Service) -> FastAPI:
    app = FastAPI(
        title="tunewright",
        version=__version__,
        description="The OpenAI protocol, from the upload of rows to answers of the tuned model.",
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
    )
    app.state.service = service
    for module in ROUTES:
        app.include_router(module.router)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(LoginNeeded, lambda *_: see("/login"))
    app.add_exception_handler(TunewrightError, _on_our_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(OSError, _on_os_error)
    app.add_exception_handler(sqlite3.Error, _on_database_error)
    app.add_exception_handler(OverQuota, _on_over_quota)
    app.add_exception_handler(UnicodeEncodeError, _on_surrogate)
    app.add_middleware(Gate, service=service)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    try:
        async with service.batch_runner.running():
            yield
    finally:
        for base in service.bases.values():
            await base.engine.disconnect()


class Gate:
    """Around every request: a name for it, the tenant that asks, and what is refused before anything is read: another
    host or origin, too large a body. Writes one line of log for each, without what was asked."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, started, status, begun = Request(scope), time.monotonic(), 500, False
        request_id = new_id("req_")
        scope["tenant"] = self._tenant(request)

        async def sending(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                names = {name for name, _ in message["headers"]}
                more = {**HEADERS, "x-request-id": request_id}
                message["headers"] = [
                    *message["headers"],
                    *((k.encode(), v.encode()) for k, v in more.items() if k.encode() not in names),
                ]
            await send(message)

        try:
            if (refused := self._refused(request, scope["tenant"])) is not None:
                await _response(refused)(scope, receive, sending)
            else:
                await self._app(scope, _limited(receive, self._most(request)), sending)
        except Exception as error:
            log.exception("request %s", request_id)
            if not begun:
                await _response(unexpected(error))(scope, receive, sending)
        finally:
            seconds = round(time.monotonic() - started, 3)
            line = {"request": request_id, "tenant": scope["tenant"], "method": request.method}
            log.info(json.dumps({**line, "path": request.url.path, "status": status, "seconds": seconds}))

    def _tenant(self, request: Request) -> str | None:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self._service.tokens.tenant(token.strip())
        return self._service.tokens.visitor(request.cookies.get(COOKIE, ""))

    def _refused(self, request: Request, tenant: str | None) -> ApiError | None:
        host = request.headers.get("host", "")
        name = host.rsplit(":", 1)[0] if host.rpartition(":")[2].isdigit() else host
        if name.lower() not in (*LOCAL_HOSTS, *self._service.settings.hosts):
            message = f"The server is not called {name[:100]!r}: start it with --allow-host."
            return ApiError(421, "wrong_host", message)
        origin = request.headers.get("origin")
        address = (origin or "").partition("://")[2]
        known = address == host or address.partition(":")[0] in self._service.settings.hosts
        if origin is not None and not known:
            return ApiError(403, "wrong_origin", "Requests of other pages are refused.")
        if tenant is None and request.method != "GET" and request.url.path not in OPEN:  # before its body is read
            return no_token()
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._most(request):
            return _too_large(self._most(request))
        return None

    def _most(self, request: Request) -> int:
        """Bytes of a body: files may be larger than what is kept in memory."""
        path, kind = request.url.path, request.headers.get("content-type", "")
        if path in OPEN:
            return LARGEST_LOGIN
        of_file = kind.startswith("multipart/") and (path in ("/v1/files", "/data") or path.startswith("/v1/uploads/"))
        return self._service.settings.largest if of_file else LARGEST_JSON


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def _too_large(most: int) -> ApiError:
    return ApiError(413, "request_too_large", f"A request has at most {most >> 20} MiB; use /v1/uploads.")


def _limited(receive: Receive, most: int) -> Callable[[], Awaitable[Message]]:
    """A body without a length in its header is counted."""
    size = 0

    async def limited() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > most:
            raise HTTPException(413, f"A request has at most {most >> 20} MiB.")
        return message

    return limited


def _response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers())


async def _on_api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return _response(error)


async def _on_our_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, TunewrightError)
    return _response(of_error(error))


async def _on_invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return _response(of_validation(error.errors()))


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    """Paths and methods that there are not, and bodies that cannot be read."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 404 and path.startswith(ABSENT):
        return _response(ApiError(501, "not_implemented", f"{path.split('/')[2]} is not a part of this server."))
    if error.status_code == 404:
        return _response(not_found("path", path))
    code = {405: "method_not_allowed", 400: "invalid_request", 413: "request_too_large"}.get(error.status_code, "error")
    return _response(ApiError(error.status_code, code, str(error.detail)))


async def _on_os_error(_: Request, error: Exception) -> JSONResponse:
    """A full disk: nothing of the request was kept."""
    assert isinstance(error, OSError)
    if error.errno not in FULL:
        raise error
    log.error("the disk: %s", error.strerror)
    return _response(ApiError(507, "disk", f"The server cannot write: {error.strerror or 'unknown'}."))


async def _on_database_error(_: Request, error: Exception) -> JSONResponse:
    """The database cannot be written, because the disk is full, or read."""
    log.error("the database: %s", error)
    return _response(ApiError(507, "disk", "The server cannot write its database."))


async def _on_over_quota(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OverQuota)
    message = f"Files, stored chats and runs would take more than {error.most / 1e6:,.1f} MB; delete files or models."
    return _response(ApiError(413, "quota_exceeded", message))


async def _on_surrogate(_: Request, error: Exception) -> JSONResponse:
    return _response(ApiError(400, "invalid_value", "The request has half of a surrogate pair, which is not text."))
