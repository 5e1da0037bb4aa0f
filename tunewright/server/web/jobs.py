"""The page of a job: is it alive, is it getting better, when is it done?"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Literal

from fastapi import APIRouter
from fastapi.responses import Response

from tunewright.core import records
from tunewright.core.config import Plan
from tunewright.core.records import METRICS, SelfTest, StepLine
from tunewright.core.run_folder import read_json
from tunewright.server.errors import ApiError, not_found
from tunewright.server.jobs.view import VERDICT
from tunewright.server.routes import fine_tuning
from tunewright.server.routes.chat import streamed
from tunewright.server.routes.common import The
from tunewright.server.service import Service
from tunewright.server.shapes import JsonObject
from tunewright.server.store.database import now
from tunewright.server.store.jobs import FINISHED, Job
from tunewright.server.web.pages import REPORT_POLICY, Visitor, fragment, see, shown

router = APIRouter(include_in_schema=False)
POLL_SECONDS = 1.0
EVENTS = 20


def summary(the: Service, job: Job) -> JsonObject:
    """State, progress and result of a job."""
    run = the.workshop.run(job)
    plan = records.existing(run.plan, Plan)
    steps = _steps(the, job)
    verdict = read_json(run.verdict) if run.verdict.exists() else None
    estimate = sum(plan.estimate.stages.values()) if plan is not None and plan.estimate is not None else None
    spent = now() - job.started_at if job.started_at is not None else 0
    (last,) = the.jobs.events(job.id, None, 1).rows or (None,)
    dev = [s.dev_loss for s in steps if s.dev_loss is not None]
    return {
        "job": job,
        "plan": plan,
        "step": steps[-1].step if steps else 0,
        "steps": plan.steps if plan is not None else None,
        "loss": steps[-1].loss if steps else None,
        "dev_loss": dev[-1] if dev else None,
        "falling": len(dev) < 2 or dev[-1] <= min(dev[:-1]),
        "speed": sum(s.tokens for s in steps[-5:]) / max(1e-9, sum(s.seconds for s in steps[-5:])) if steps else None,
        "left": max(0, round(estimate - spent)) if estimate is not None and job.status == "running" else None,
        "verdict": {key: verdict[key] for key in VERDICT} if verdict else None,
        "last": last["message"] if last is not None else "",
        "has_report": run.report.exists(),
    }


def _steps(the: Service, job: Job) -> list[StepLine]:
    file = the.workshop.run(job).metrics
    return [s for s in records.read_lines(file, METRICS) if isinstance(s, StepLine)]


def _values(the: Service, job: Job) -> JsonObject:
    run = the.workshop.run(job)
    return {
        **summary(the, job),
        "events": the.jobs.events(job.id, None, EVENTS).rows,
        "selftest": records.existing(run.selftest, SelfTest),
        "finished": job.status in FINISHED,
    }


@router.get("/jobs/{job_id}")
def job_page(the: The, tenant: Visitor, job_id: str) -> Response:
    job = fine_tuning.job_of(the, tenant, job_id)
    return shown("job.html.j2", tenant, "home", {**_values(the, job), "streamed": False})


@router.get("/jobs/{job_id}/live")
async def live(the: The, tenant: Visitor, job_id: str) -> Response:
    """The changing part of the page, whenever it changes, until the job has ended."""
    fine_tuning.job_of(the, tenant, job_id)

    async def fragments() -> AsyncGenerator[bytes, None]:
        before = ""
        while True:
            job = fine_tuning.job_of(the, tenant, job_id)
            text = await asyncio.to_thread(_live, the, job)
            if text != before:
                before = text
                yield "".join(f"data: {line}\n" for line in text.splitlines()).encode() + b"\n"
            if job.status in FINISHED:
                yield b"event: end\ndata: {}\n\n"  # or the page would connect again
                return
            await asyncio.sleep(POLL_SECONDS)

    return streamed(fragments())


def _live(the: Service, job: Job) -> str:
    return fragment("job_live.html.j2", **_values(the, job), streamed=True)


@router.get("/jobs/{job_id}/curve")
async def curve(the: The, tenant: Visitor, job_id: str) -> Response:
    """The losses: all there are, then new ones as they come, until the job has ended."""
    fine_tuning.job_of(the, tenant, job_id)

    async def points() -> AsyncGenerator[bytes, None]:
        sent = 0
        while True:
            job = fine_tuning.job_of(the, tenant, job_id)
            new = [s for s in await asyncio.to_thread(_steps, the, job) if s.step > sent]
            if new:
                sent = new[-1].step
                data = [[s.step, s.loss, s.dev_loss] for s in new]
                yield f"data: {json.dumps(data)}\n\n".encode()
            if job.status in FINISHED:
                yield b"event: end\ndata: {}\n\n"
                return
            await asyncio.sleep(POLL_SECONDS)

    return streamed(points())


@router.post("/jobs/{job_id}/{action}")
def act(the: The, tenant: Visitor, job_id: str, action: Literal["pause", "resume", "cancel"]) -> Response:
    actions = {
        "pause": fine_tuning.pause_job,
        "resume": fine_tuning.resume_job,
        "cancel": fine_tuning.cancel_job,
    }
    try:
        actions[action](the, tenant, job_id)
    except ApiError as error:
        if error.status != 400:  # it may have ended meanwhile: the page shows how
            raise
    return see(f"/jobs/{job_id}")


@router.get("/jobs/{job_id}/report")
def report(the: The, tenant: Visitor, job_id: str) -> Response:
    file = the.workshop.run(fine_tuning.job_of(the, tenant, job_id)).report
    if not file.exists():
        raise not_found("report", job_id)
    headers = {"content-security-policy": REPORT_POLICY}
    return Response(file.read_bytes(), media_type="text/html", headers=headers)
