"""Branches: extra training runs that belong to a run, on other rows or with another seed, learning rate or teacher.

A branch has its own folder, branches/NAME; it is trained once, and resumed if interrupted.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from tunewright.core import records
from tunewright.core.config import Plan
from tunewright.core.records import BranchTraining, Side
from tunewright.core.run_folder import chosen_scale, make_folder
from tunewright.data.scores import Score
from tunewright.judge.arms.arm import Arm
from tunewright.model import adapters
from tunewright.runtime import weights
from tunewright.runtime.answers import AnswerRequest
from tunewright.runtime.context import Work
from tunewright.runtime.receipt import input_hashes
from tunewright.runtime.weights import Weights
from tunewright.tokens.sequences import TrainRow, digest
from tunewright.train import checkpoints, loop


@dataclass(frozen=True)
class Branch:
    """``rows`` are trained on, ``dev`` decides when to stop. ``scale``: its trained update is multiplied by it for its
    answers."""

    name: str
    plan: Plan
    rows: tuple[TrainRow, ...]
    dev: tuple[TrainRow, ...]
    scale: float


def of_rows(work: Work, name: str, rows: Sequence[int], fraction: float, seed: int) -> Branch:
    """The run's recipe on ``rows``, a ``fraction`` of its training rows: the same epochs, hence fewer steps; answers at
    the run's chosen scale."""
    wanted = set(rows)
    chosen = tuple(r for r in work.inputs.rows["train"] if r.row in wanted)
    return Branch(
        name, smaller(work.plan, fraction, len(chosen), seed), chosen, work.inputs.rows["dev"], chosen_scale(work.run)
    )


def smaller(plan: Plan, fraction: float, sequences: int, seed: int) -> Plan:
    """The plan for a fraction of the rows; only the numbers that depend on it change."""
    steps = max(1, round(plan.steps * fraction))
    return plan.model_copy(
        update={
            "rows": sequences,
            "steps": steps,
            "warmup_steps": min(plan.warmup_steps, max(1, round(plan.warmup_steps * fraction))),
            "eval_every": max(1, round(plan.eval_every * fraction)),
            "checkpoint_every": max(1, min(plan.checkpoint_every, steps)),
            "batch_size": min(plan.batch_size, sequences),
            "seed": seed,
        }
    )


def scores(
    work: Work, branch: Branch, side: Side, arm: Arm | None = None, rows: Sequence[int] | None = None
) -> list[Score]:
    """The branch's answers to dev or test, or to some ``rows`` of train, prompted by ``arm`` (default: the tuned arm).
    Trains the branch first if necessary."""
    arm = arm or work.tuned
    rows = work.inputs.evaluated(side) if rows is None else rows
    file = work.run.branch(branch.name).scores / f"{side}-{arm.name}.jsonl"
    branch_weights = trained(work, branch)
    if side == "test" and not file.exists():
        work.run.event("test_read", rows=len(rows), branch=branch.name)
    return work.answers.scores(AnswerRequest(arm, side, rows, file, branch.name), branch_weights)


def trained(work: Work, branch: Branch) -> Weights:
    """The branch's weights, trained first if necessary."""
    run = work.run.branch(branch.name)
    if not run.training.exists():
        _train(work, branch)
    return weights.at_scale(run, branch.plan, branch.scale)


def _train(work: Work, branch: Branch) -> None:
    run = work.run.branch(branch.name)
    make_folder(run.checkpoints)
    content = hashlib.sha256(digest(branch.rows).encode())
    content.update(branch.plan.model_dump_json(exclude={"estimate", "reasons"}).encode())
    hashes = {**input_hashes(work.data, work.inputs, work.plan), "branch": content.hexdigest()}
    model = work.models.untrained(branch.plan)
    training_inputs = loop.with_precomputed(
        loop.TrainingInputs(model, branch.plan, branch.rows, branch.dev, run, hashes)
    )
    with work.console.bar(f"train {branch.name}", branch.plan.steps) as tick:
        result = loop.train(training_inputs, lambda p: tick(1, f"loss {p.loss:.3f}"))
    sha256 = checkpoints.save_weights(run.weights, adapters.trainable(model.module))
    records.write(run.training, BranchTraining(**dataclasses.asdict(result), weights_sha256=sha256))
