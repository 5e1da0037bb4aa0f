"""The models that a tenant can name: bases, what its jobs have trained, their checkpoints, and runs of this machine.

smollm2-135m                              a base
ft:smollm2-135m:TENANT:SUFFIX:JOB         the tuned model of a job
ft:smollm2-135m:TENANT:SUFFIX:JOB:ckpt-step-40
run:NAME                                  the tuned model of a run, for the default tenant
any of these followed by @0.5             with the trained update multiplied by 0.5
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tunewright.core import records, run_folder
from tunewright.core.chosen import chosen_decoding, chosen_scale
from tunewright.core.config import Plan, load
from tunewright.core.errors import TunewrightError
from tunewright.core.records import Receipt
from tunewright.core.run_folder import Run
from tunewright.core.sampling import DECODINGS, GREEDY, Sampling
from tunewright.runtime.chat import trained_with
from tunewright.server.access import DEFAULT
from tunewright.server.engine.base import Base
from tunewright.server.engine.generation import AdapterFile
from tunewright.server.errors import ApiError, not_found
from tunewright.server.shapes import JsonObject
from tunewright.server.store.jobs import Job, Jobs
from tunewright.tokens.template import Template, load_template
from tunewright.train import checkpoints

SCALE = re.compile(r"(.+)@(\d{1,2}(?:\.\d{1,4})?)")
CHECKPOINT = re.compile(r"(.+):ckpt-step-(\d{1,9})")
MOST_SCALE = 4.0


@dataclass(frozen=True)
class Listed:
    id: str
    created: int
    owner: str

    def to_json(self) -> JsonObject:
        return {"id": self.id, "object": "model", "created": self.created, "owned_by": self.owner}


@dataclass(frozen=True)
class Served:
    """A model that can answer. ``sampling``: how its tokens are chosen where a request says nothing. ``instruction``:
    the system message of most of its training rows."""

    id: str
    base: Base
    template: Template
    sampling: Sampling = GREEDY
    adapter: AdapterFile | None = None
    scale: float = 1.0
    instruction: str | None = None

    @property
    def fingerprint(self) -> str:
        """Of the weights that answer."""
        key = self.adapter.sha256 if self.adapter is not None and self.scale else self.base.facts.sha256
        scale = f"@{self.scale:g}" if self.adapter is not None and self.scale not in (0, 1) else ""
        return f"fp_{key[:12]}{scale}"


class Catalogue:
    """``work``: the folder with the runs of jobs; ``runs``: that of `tunewright run`."""

    def __init__(self, bases: Mapping[str, Base], jobs: Jobs, work: Path, runs: Path | None) -> None:
        self.bases = bases
        self._jobs, self._work, self._runs = jobs, work, runs
        self._known: dict[tuple[Path, int | None, tuple[int, ...]], Served] = {}
        self._loading = threading.Lock()  # requests for several models may arrive at once
        self._templates: dict[tuple[str, str | None, str], Template] = {}

    def listed(self, tenant: str) -> list[Listed]:
        """All models, the newest first, without checkpoints."""
        models = [Listed(name, 0, "tunewright") for name in self.bases]
        models += [
            Listed(job.model_id, job.finished_at or 0, tenant)
            for job in self._jobs.all_of(tenant)
            if job.status == "succeeded" and not job.model_deleted and job.model_id
        ]
        if tenant == DEFAULT and self._runs is not None:
            done = [run for run in run_folder.all_runs(self._runs) if run.training.exists()]
            models += [Listed(f"run:{run.name}", int(run.training.stat().st_mtime), DEFAULT) for run in done]
        return sorted(models, key=lambda m: -m.created)

    def job_of(self, tenant: str, name: str) -> Job | None:
        """The job whose model has this name, whether or not it can be used now."""
        return self._jobs.of_model(tenant, name)

    def get(self, tenant: str, name: str) -> Served:
        """Raises ApiError: 404 for a model that is not there or of another tenant, 400 for one that cannot be
        served."""
        if name in self.bases:
            base = self.bases[name]
            return Served(name, base, base.template)
        if scaled := SCALE.fullmatch(name):
            served, scale = self.get(tenant, scaled[1]), float(scaled[2])
            if not served.base.engine.supports_scale:
                raise ApiError(400, "model_not_servable", "models served by --engine cannot be scaled.", "model")
            if scale > MOST_SCALE:
                raise ApiError(400, "invalid_value", f"the scale is at most {MOST_SCALE:g}.", "model")
            return replace(served, id=name, scale=scale)
        whole = CHECKPOINT.fullmatch(name)
        run = self._run_of(tenant, whole[1] if whole else name)
        if run is None:
            raise ApiError(404, "model_not_found", f"The model `{name[:200]}` does not exist.", "model")
        key = run.path, int(whole[2]) if whole else None, _changes(run)
        try:
            with self._loading:
                if key not in self._known:
                    self._known[key] = self._served(name, run, key[1])
                return self._known[key]
        except (TunewrightError, OSError, KeyError) as error:
            what = str(error) if isinstance(error, TunewrightError) else f"a file of its run is missing: {error}"
            raise ApiError(400, "model_not_servable", f"The model `{name}` cannot be served: {what}", "model") from None

    def _run_of(self, tenant: str, name: str) -> Run | None:
        if tenant == DEFAULT and self._runs is not None and name.startswith("run:"):
            folder = self._runs / name.removeprefix("run:")
            known = run_folder.NAME.fullmatch(folder.name) and folder.parent == self._runs
            return Run(folder) if known and (folder / "training.json").is_file() else None
        job = self.job_of(tenant, name)
        return Run(self._work / job.id) if job is not None and job.status == "succeeded" else None

    def _served(self, name: str, run: Run, step: int | None) -> Served:
        plan, receipt, config = (
            records.read(run.plan, Plan),
            records.read(run.receipt, Receipt),
            load(run.config),
        )
        base = next((b for b in self.bases.values() if b.facts.sha256 == receipt.model.sha256), None)
        if base is None:
            message = f"its base {receipt.model.name} is not among those that this server has loaded."
            raise ApiError(400, "model_not_servable", f"The model `{name}` cannot be served: {message}", "model")
        silent = f"it {plan.silent}, and writes no text" if plan.silent else None
        if refused := silent or base.engine.refuses(plan.adapter, step):
            raise ApiError(400, "model_not_servable", f"The model `{name}` cannot be served: {refused}", "model")
        if step is None:
            sha256 = records.read(run.training, records.Training).weights_sha256
            adapter, scale = AdapterFile(sha256, run.weights, plan.adapter, run.path), chosen_scale(run)
        else:
            folder = run.checkpoints / f"step-{step:06d}"
            if folder not in checkpoints.complete(run.checkpoints):
                raise not_found("model", name)
            adapter, scale = (
                AdapterFile(checkpoints.weights_sha256(folder), folder / "weights.safetensors", plan.adapter),
                1.0,
            )
        template = trained_with(receipt, self._template(base, config.template, config.date))
        sampling = DECODINGS[chosen_decoding(run)]
        return Served(name, base, template, sampling, adapter, scale, receipt.instruction)

    def _template(self, base: Base, name: str | None, date: str) -> Template:
        key = base.facts.path, name, date
        if key not in self._templates:
            self._templates[key] = load_template(Path(base.facts.path), name, date)
        return self._templates[key]


def _changes(run: Run) -> tuple[int, ...]:
    """When the records that decide about its model were written; those of a run that is not finished may follow."""
    files = (run.training, run.forgetting, run.verdict)
    return tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in files)
