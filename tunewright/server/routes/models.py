"""/v1/models. Names of tuned models have colons, which clients percent-encode."""

from __future__ import annotations

from fastapi import APIRouter

from tunewright.server.errors import ApiError, bad
from tunewright.server.models import Listed
from tunewright.server.routes.common import Tenant, The
from tunewright.server.shapes import JsonObject
from tunewright.server.store.jobs import FINISHED

router = APIRouter(prefix="/v1", tags=["models"])


@router.get("/models")
def list_models(the: The, tenant: Tenant) -> JsonObject:
    return {"object": "list", "data": [m.to_json() for m in the.catalogue.listed(tenant)]}


@router.get("/models/{name:path}")
def get_model(the: The, tenant: Tenant, name: str) -> JsonObject:
    served = the.catalogue.get(tenant, name)
    known = {m.id: m for m in the.catalogue.listed(tenant)}
    return {
        **known.get(name, Listed(name, 0, tenant)).to_json(),
        "tunewright": {
            "base": served.base.name,
            "weights": served.fingerprint.removeprefix("fp_"),
            "scale": served.scale if served.adapter is not None else None,
            "instruction": served.instruction,
        },
    }


@router.delete("/models/{name:path}")
def delete_model(the: The, tenant: Tenant, name: str) -> JsonObject:
    """The model cannot be asked any more, and its weights are removed. Its job, with what it has proved, stays. Of a
    job that ended without a model, the weights that it saved can be deleted by the job's id."""
    job = the.catalogue.job_of(tenant, name) or the.jobs.get(tenant, name)
    if job is not None and job.status not in FINISHED:
        raise bad("model_not_deletable", f"The job {job.id} has not ended; cancel it first.", "model")
    if job is None:
        if name in the.catalogue.bases or name.startswith("run:"):
            raise bad("model_not_deletable", "Only models of fine-tuning jobs can be deleted.", "model")
        raise ApiError(404, "model_not_found", f"The model `{name[:200]}` does not exist.", "model")
    the.workshop.delete_model(job)
    for base in the.bases.values():
        base.engine.forget(lambda owner: owner.tenant == tenant and owner.use.adapter is not None)
    return {"id": name, "object": "model", "deleted": True}
