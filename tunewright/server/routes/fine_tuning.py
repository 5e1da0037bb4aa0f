"""/v1/fine_tuning/jobs."""

from __future__ import annotations

from fastapi import APIRouter, Request

from tunewright.core.errors import TunewrightError
from tunewright.server.errors import bad, not_found, of_error
from tunewright.server.jobs.request import JobRequest, refused
from tunewright.server.jobs.view import checkpoints_json, job_json
from tunewright.server.routes.common import After, Limit, Tenant, The, list_json, listed, repeated_since
from tunewright.server.service import Service, config_of_job
from tunewright.server.shapes import JsonObject
from tunewright.server.store.files import OverQuota
from tunewright.server.store.jobs import FINISHED, Job, event_json

router = APIRouter(prefix="/v1/fine_tuning", tags=["fine-tuning"])
MOST_BYTES = 512 << 20  # of a file of rows, as in OpenAI's API: it is read as a whole


@router.post("/jobs")
def create_job(the: The, tenant: Tenant, http: Request, request: JobRequest) -> JsonObject:
    if request.model not in the.bases:
        names = ", ".join(the.bases)
        raise bad(
            "model_not_found", f"The model `{request.model[:200]}` cannot be fine-tuned here; {names} can.", "model"
        )
    if problem := refused(request):
        param, message = problem
        raise bad("unsupported_parameter", f"{param}: {message}", param)
    for name in ("training_file", "validation_file"):
        file_id = getattr(request, name)
        file = the.files.get(tenant, file_id) if file_id is not None else None
        if file_id is not None and file is None:
            raise bad("file_not_found", f"There is no file {file_id}.", name)
        if file is not None and file.bytes > MOST_BYTES:
            raise bad("file_too_large", f"{name}: at most {MOST_BYTES >> 20} MiB can be trained on.", name)
        if file is not None and file.purpose != "fine-tune":
            raise bad("invalid_value", f"{name}: its purpose is {file.purpose}, not fine-tune.", name)
    if not the.files.room(tenant):
        raise OverQuota(the.settings.quota)
    try:  # settings that are wrong are reported before there is a job
        config = config_of_job(tenant, request, the.files, the.bases)
    except TunewrightError as error:
        raise of_error(error, "tunewright" if request.tunewright else None) from None
    if the.settings.engine is not None and (why := the.bases[request.model].engine.refuses(config.adapter, None)):
        raise bad("unsupported_parameter", f"tunewright.adapter: {why}", "tunewright")
    prefix = f"ft:{request.model}:{tenant}:{request.suffix or ''}:"
    with the.database.transaction():  # the first attempt may still be on its way
        since, digest = repeated_since(http), request.digest(tenant)
        if since is not None and (job := the.jobs.repeated(tenant, digest, since)) is not None:
            return job_json(the, job)
        return job_json(the, the.jobs.add(tenant, request.model_dump(mode="json"), digest, prefix))


@router.get("/jobs")
def list_jobs(the: The, tenant: Tenant, after: After = None, limit: Limit = 20) -> JsonObject:
    return listed(the.jobs.page(tenant, after, limit), lambda row: job_json(the, Job.of(row)))


@router.get("/jobs/{job_id}")
def get_job(the: The, tenant: Tenant, job_id: str) -> JsonObject:
    return job_json(the, job_of(the, tenant, job_id))


@router.post("/jobs/{job_id}/cancel")
def cancel_job(the: The, tenant: Tenant, job_id: str) -> JsonObject:
    job = _unfinished(the, tenant, job_id)
    the.jobs.want(job, "cancel", "The job is being cancelled")
    return job_json(the, job_of(the, tenant, job_id))


@router.post("/jobs/{job_id}/pause")
def pause_job(the: The, tenant: Tenant, job_id: str) -> JsonObject:
    """OpenAI's client knows no status "paused": the job is in the queue, and `tunewright.paused` is true."""
    job = _uncancelled(the, tenant, job_id)
    if not job.paused:
        the.jobs.want(job, "pause", "The job will be paused")
    return job_json(the, job_of(the, tenant, job_id))


@router.post("/jobs/{job_id}/resume")
def resume_job(the: The, tenant: Tenant, job_id: str) -> JsonObject:
    job = _uncancelled(the, tenant, job_id)
    if job.paused:
        the.jobs.want(job, "run", "The job is resumed")
    return job_json(the, job_of(the, tenant, job_id))


@router.get("/jobs/{job_id}/events")
def list_events(the: The, tenant: Tenant, job_id: str, after: After = None, limit: Limit = 20) -> JsonObject:
    job = job_of(the, tenant, job_id)
    return listed(the.jobs.events(job.id, after, limit), event_json)


@router.get("/jobs/{job_id}/checkpoints")
def list_checkpoints(the: The, tenant: Tenant, job_id: str, after: After = None, limit: Limit = 10) -> JsonObject:
    """Those that are kept, the newest first. Each can be named as a model."""
    every = checkpoints_json(the, job_of(the, tenant, job_id))
    ids = [c["id"] for c in every]
    start = 0 if after is None else ids.index(after) + 1 if after in ids else len(ids)
    data = every[start : start + limit]
    return list_json(data, start + limit < len(every))


def job_of(the: Service, tenant: str, job_id: str) -> Job:
    """Raises ApiError 404."""
    job = the.jobs.get(tenant, job_id)
    if job is None:
        raise not_found("fine_tuning_job", job_id)
    return job


def _unfinished(the: Service, tenant: str, job_id: str) -> Job:
    job = job_of(the, tenant, job_id)
    if job.status in FINISHED:
        raise bad("invalid_value", f"The job has ended: {job.status}.", "job_id")
    return job


def _uncancelled(the: Service, tenant: str, job_id: str) -> Job:
    job = _unfinished(the, tenant, job_id)
    if job.wanted == "cancel":
        raise bad("invalid_value", "The job is being cancelled.", "job_id")
    return job
