"""A job as OpenAI's API has it; verdict, forgetting, cost and report beside the standard fields, under `tunewright`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunewright.core import records
from tunewright.core.config import PREFERENCE, Plan
from tunewright.core.records import METRICS, StepLine
from tunewright.core.run_folder import Run, read_json
from tunewright.server.shapes import JsonObject
from tunewright.server.store.jobs import FINISHED, Job
from tunewright.train import checkpoints

if TYPE_CHECKING:
    from tunewright.server.service import Service

VERDICT = ("verdict", "metric", "tuned", "comparator", "difference", "interval", "p_value", "n")


def job_json(the: Service, job: Job) -> JsonObject:
    run, request = the.workshop.run(job), job.request
    plan = records.existing(run.plan, Plan)
    asked = (request["tunewright"] or {}).get("train.method", "sft")
    method = "dpo" if asked in PREFERENCE else (request["method"] or {}).get("type", "supervised")
    hyperparameters = _hyperparameters(request, method, plan)
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": job.created_at,
        "error": job.error,
        "fine_tuned_model": job.model_id if job.status == "succeeded" and not job.model_deleted else None,
        "finished_at": job.finished_at,
        "hyperparameters": hyperparameters,
        "model": request["model"],
        "organization_id": job.tenant,
        "result_files": [job.result_file] if job.result_file else [],
        "seed": request["seed"] or 0,
        "status": job.status,
        "trained_tokens": job.trained_tokens,
        "training_file": request["training_file"],
        "validation_file": request["validation_file"],
        "estimated_finish": _estimated_finish(job, plan),
        "integrations": [],
        "metadata": request["metadata"],
        "method": {"type": method, method: {"hyperparameters": hyperparameters}},
        "tunewright": {"paused": job.paused, "attempts": job.attempt, **evidence(run, job)},
    }


def _hyperparameters(request: JsonObject, method: str, plan: Plan | None) -> JsonObject:
    """As asked for, and once there is a plan, what "auto" was."""
    given = ((request["method"] or {}).get(method) or {}).get("hyperparameters") or request["hyperparameters"] or {}
    auto: JsonObject = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
    chosen = {**auto, **({"beta": "auto"} if method == "dpo" else {}), **given}
    if plan is not None:
        planned = {
            "n_epochs": max(1, round(plan.epochs)),
            "batch_size": plan.batch_size,
            "learning_rate_multiplier": 1.0,
            "beta": plan.options.beta,
        }
        chosen = {k: planned[k] if v == "auto" else v for k, v in chosen.items()}
    return chosen


def _estimated_finish(job: Job, plan: Plan | None) -> int | None:
    if job.status in FINISHED or plan is None or plan.estimate is None or job.started_at is None:
        return None
    return job.started_at + round(sum(plan.estimate.stages.values()))


def evidence(run: Run, job: Job) -> JsonObject:
    """What the run has proved so far."""
    verdict = read_json(run.verdict) if run.verdict.exists() else None
    return {
        "verdict": {key: verdict[key] for key in VERDICT} if verdict else None,
        "forgetting": read_json(run.forgetting) if run.forgetting.exists() else None,
        "cost": read_json(run.cost) if run.cost.exists() else None,
        "report_url": f"/jobs/{job.id}/report" if run.report.exists() else None,
    }


def checkpoints_json(the: Service, job: Job) -> list[JsonObject]:
    """The newest first."""
    run = the.workshop.run(job)
    if not run.checkpoints.is_dir():
        return []
    steps = {s.step: s for s in records.read_lines(run.metrics, METRICS) if isinstance(s, StepLine)}
    return [
        _checkpoint_json(job, int(folder.name.removeprefix("step-")), folder.stat().st_mtime, steps)
        for folder in reversed(checkpoints.complete(run.checkpoints))
    ]


def _checkpoint_json(job: Job, step: int, changed: float, steps: dict[int, StepLine]) -> JsonObject:
    line = steps.get(step)
    metrics: JsonObject = {"step": step}
    if line is not None:
        metrics["train_loss"] = line.loss
        if line.dev_loss is not None:
            metrics["valid_loss"] = metrics["full_valid_loss"] = line.dev_loss
    return {
        "id": f"ftckpt_{job.id.removeprefix('ftjob-')}_{step}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(changed),
        "fine_tuned_model_checkpoint": f"{job.model_id}:ckpt-step-{step}",
        "fine_tuning_job_id": job.id,
        "step_number": step,
        "metrics": metrics,
    }
