"""Rendering of pages, and who may see them."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import ChoiceLoader, Environment, PackageLoader

from tunewright import __version__
from tunewright.core.words import duration
from tunewright.report import page
from tunewright.server.access import COOKIE, cookie_of

# No script or style but the server's own files, no frames, no forms to elsewhere.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
# Of the report, which has its style in itself and no scripts.
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; base-uri 'none'"


class LoginNeeded(Exception):
    """The page is for those with a token."""


def visitor_of(request: Request) -> str:
    tenant: str | None = request.scope.get("tenant")
    if tenant is None:
        raise LoginNeeded
    return tenant


Visitor = Annotated[str, Depends(visitor_of)]


@functools.cache
def _environment() -> Environment:
    loader = ChoiceLoader([PackageLoader("tunewright.server.web"), PackageLoader("tunewright.report")])
    environment = page.environment(loader)
    environment.filters |= {"time": shown_time, "clock": shown_clock, "duration": duration, "size": shown_size}
    environment.globals |= {"version": __version__}
    return environment


def fragment(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)


def shown(template: str, tenant: str, here: str, values: Mapping[str, Any], status: int = 200) -> HTMLResponse:
    """A page. ``here``: the entry of the navigation that it belongs to."""
    text = fragment(template, tenant=tenant, here=here, **values)
    return HTMLResponse(text, status, {"content-security-policy": POLICY})


def see(path: str) -> RedirectResponse:
    return RedirectResponse(path, status_code=303)


def with_cookie(response: Response, token: str) -> Response:
    """Only sent back to this server, and never by another site's page."""
    response.set_cookie(COOKIE, cookie_of(token), httponly=True, samesite="strict", path="/", max_age=90 * 24 * 3600)
    return response


def shown_time(seconds: int | None) -> str:
    if not seconds:
        return ""
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M} UTC"


def shown_clock(seconds: int) -> str:
    """Of the last day, without the day."""
    time = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    recent = datetime.datetime.now(datetime.UTC) - time < datetime.timedelta(days=1)
    return f"{time:%H:%M:%S} UTC" if recent else shown_time(seconds)


def shown_size(count: int) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000  # type: ignore[assignment]
    return f"{count:.1f} GB"
