"""Weights as a value: a file, its hash and a scale. Code that needs answers names weights, never a module."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunewright.core import records
from tunewright.core.chosen import chosen_scale
from tunewright.core.config import Plan
from tunewright.core.records import ANY_TRAINING
from tunewright.core.run_folder import Run, sha256


@dataclass(frozen=True)
class Weights:
    """``plan``: the plan of the model that they belong to (adapter, dtype, kernels). ``file``: None for the base model.
    ``sha256``: of the file, as training recorded it. ``scale``: the trained update is multiplied by it; 1 is the
    update as trained. ``full_precision``: those of the base as they are in its files, whatever the run packs.
    ``teacher``: those of the plan's teacher."""

    plan: Plan
    file: Path | None = None
    sha256: str = ""
    scale: float = 1.0
    full_precision: bool = False
    teacher: bool = False


def base(plan: Plan, full_precision: bool = False) -> Weights:
    """The base model, in the plan's dtype."""
    return Weights(plan, full_precision=full_precision)


def teacher(plan: Plan) -> Weights:
    """The plan's teacher."""
    assert plan.teacher is not None
    return Weights(plan, sha256=plan.teacher.sha256, teacher=True)


def at_scale(run: Run, plan: Plan, scale: float) -> Weights:
    """The weights that training in ``run`` (a run or a branch) kept, with the update multiplied by ``scale``."""
    sha256 = records.read(run.training, ANY_TRAINING).weights_sha256
    return Weights(plan, run.weights, sha256, scale)


def start_file(run: Run) -> Path:
    """The initial values, where these are those of an existing adapter."""
    return run.checkpoints / "start.safetensors"


def start(run: Run, plan: Plan) -> Weights:
    """The adapter that training continued from."""
    return Weights(plan, start_file(run), sha256(start_file(run)))


def before(run: Run, plan: Plan) -> Weights:
    """The model before training: the base, or the adapter that training continued from."""
    return base(plan) if plan.adapter.start is None else start(run, plan)


def at_chosen_scale(run: Run, plan: Plan) -> Weights:
    """The run's tuned model: its trained weights at the scale that the stage `forgetting` chose. Only after that stage:
    before it, the scale is not known."""
    assert run.forgetting.exists(), "the stage `forgetting` chooses the scale"
    return at_scale(run, plan, chosen_scale(run))
