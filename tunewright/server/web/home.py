"""Home, login and the exports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import FileResponse, Response

from tunewright.core import records, run_folder
from tunewright.core.records import CONSUMER_CHECKS, EXPORTS
from tunewright.core.run_folder import Run
from tunewright.report import page
from tunewright.server.access import COOKIE, DEFAULT
from tunewright.server.errors import not_found
from tunewright.server.routes.common import The
from tunewright.server.service import Service
from tunewright.server.shapes import JsonObject
from tunewright.server.store.files import size_of
from tunewright.server.web.jobs import summary
from tunewright.server.web.pages import Visitor, fragment, see, shown, with_cookie

router = APIRouter(include_in_schema=False)
STATIC = Path(__file__).parent / "static"
SERVED = {file.name: file for file in STATIC.iterdir()}
SERVED["page.css"] = Path(page.__file__).parent / "templates" / "page.css"  # one look for pages and reports
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


@router.get("/")
def home(the: The, http: Request, token: str = "") -> Response:
    """``token``: of the link that `tunewright serve` prints; it does not stay in the address."""
    if token and the.tokens.tenant(token) is not None:
        return with_cookie(see("/"), token)
    tenant: str | None = http.scope.get("tenant")
    if tenant is None:
        return see("/login")
    return shown("home.html.j2", tenant, "home", _home(the, tenant))


@router.get("/fragments/home")
def home_fragment(the: The, tenant: Visitor) -> Response:
    return Response(fragment("home_live.html.j2", **_home(the, tenant)), media_type="text/html")


def _home(the: Service, tenant: str) -> JsonObject:
    jobs = [summary(the, job) for job in reversed(the.jobs.all_of(tenant))]
    queued = [job.id for job in the.jobs.in_state("queued")]
    return {
        "jobs": jobs,
        "queue": {job_id: place + 1 for place, job_id in enumerate(queued)},
        "engines": {name: base.engine.stats() for name, base in the.bases.items()},
        "bases": the.bases,
    }


@router.get("/login")
def login_page(http: Request) -> Response:
    return shown("login.html.j2", http.scope.get("tenant") or "", "login", {"wrong": False})


@router.post("/login")
def login(the: The, token: Annotated[str, Form(max_length=200)]) -> Response:
    if the.tokens.tenant(token.strip()) is None:
        return shown("login.html.j2", "", "login", {"wrong": True}, 401)
    return with_cookie(see("/"), token.strip())


@router.post("/logout")
def logout() -> Response:
    response = see("/login")
    response.delete_cookie(COOKIE)
    return response


@router.get("/static/{name}")
def static(name: str) -> Response:
    if name not in SERVED:
        raise not_found("file", name)
    file = SERVED[name]
    return FileResponse(file, media_type=TYPES[file.suffix], headers={"cache-control": "max-age=3600"})


@router.get("/exports")
def exports(the: The, tenant: Visitor) -> Response:
    """What the tenant's models have been written as, and which programs were asked."""
    runs = [
        (job.model_id, the.workshop.run(job))
        for job in reversed(the.jobs.all_of(tenant))
        if job.status == "succeeded" and not job.model_deleted
    ]
    if tenant == DEFAULT and the.settings.runs is not None:
        runs += [(f"run:{run.name}", run) for run in run_folder.all_runs(the.settings.runs) if run.export.exists()]
    return shown("exports.html.j2", tenant, "exports", {"rows": [_exported(name or "", run) for name, run in runs]})


def _exported(name: str, run: Run) -> JsonObject:
    checks = records.existing(run.export, EXPORTS) or ()
    sizes = {c.relative_path: size_of(run.path / c.relative_path) for c in checks}
    consumers = records.existing(run.verify, CONSUMER_CHECKS) or ()
    return {"name": name, "run": run, "checks": checks, "sizes": sizes, "consumers": consumers}
