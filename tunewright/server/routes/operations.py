"""/health and /metrics."""

from __future__ import annotations

from collections import Counter

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from tunewright import __version__
from tunewright.server.access import DEFAULT
from tunewright.server.errors import not_found
from tunewright.server.routes.common import Tenant, The
from tunewright.server.shapes import JsonObject

router = APIRouter(tags=["operations"])


@router.get("/health")
def health(the: The) -> JsonObject:
    """Without a token: whether the server answers, and nothing else."""
    return {"status": "ok", "version": __version__, "models": len(the.bases)}


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(the: The, tenant: Tenant) -> str:
    """Prometheus' text format; of all tenants, so for the default one alone."""
    if tenant != DEFAULT:
        raise not_found("path", "/metrics")
    lines: list[str] = []

    def add(name: str, kind: str, meaning: str, values: dict[str, float]) -> None:
        lines.extend((f"# HELP tunewright_{name} {meaning}", f"# TYPE tunewright_{name} {kind}"))
        lines.extend(f"tunewright_{name}{labels} {value:g}" for labels, value in values.items())

    stats = {f'{{model="{name}"}}': base.engine.stats() for name, base in the.bases.items()}
    columns = (
        ("requests_active", "gauge", "Requests that are being answered.", "active"),
        ("requests_waiting", "gauge", "Requests that wait.", "waiting"),
        ("tokens_total", "counter", "Tokens of answers.", "tokens"),
        ("prompt_tokens_total", "counter", "Tokens of prompts.", "prompt_tokens"),
        ("cached_tokens_total", "counter", "Tokens of prompts that were known.", "cached"),
        ("engine_seconds_total", "counter", "Seconds in which the engine computed.", "seconds"),
        ("prefix_cache_bytes", "gauge", "Size of the prompts that are kept.", "prefix_bytes"),
    )
    for name, kind, meaning, field in columns:
        add(name, kind, meaning, {labels: getattr(s, field) for labels, s in stats.items()})
    adapters = {labels: float(len(s.adapters)) for labels, s in stats.items()}
    add("adapters_loaded", "gauge", "Adapters in memory.", adapters)
    jobs = Counter(job.status for job in the.jobs.all_of())
    add("jobs", "gauge", "Fine-tuning jobs.", {f'{{status="{status}"}}': n for status, n in sorted(jobs.items())})
    add("disk_free_bytes", "gauge", "Free space where files are stored.", {"": float(the.files.free())})
    return "\n".join([*lines, ""])
