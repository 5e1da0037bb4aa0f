"""The same recipe on other rows, another seed or another rate, beside the run it is compared with.

A branch lives in branches/NAME of the run folder, is continued where it stopped, and is not trained again once it is whole.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunewright import adapters, checkpoints, evaluate, lean, loop, models, runs
from tunewright.config import Plan
from tunewright.evaluate import Score
from tunewright.methods import sft
from tunewright.rendering import Rendered
from tunewright.runs import Run
from tunewright.session import Session


@dataclass(frozen=True)
class Branch:
    """``rows``: the examples it learns from."""

    name: str
    rows: tuple[int, ...]
    plan: Plan


def smaller(plan: Plan, share: float, sequences: int, seed: int) -> Plan:
    """The recipe for a share of the rows: as many epochs, so fewer steps; every other number as it was."""
    steps = max(1, round(plan.steps * share))
    return plan.model_copy(
        update={
            "rows": sequences,
            "steps": steps,
            "warmup_steps": min(plan.warmup_steps, max(1, round(plan.warmup_steps * share))),
            "eval_every": max(1, round(plan.eval_every * share)),
            "checkpoint_every": max(1, min(plan.checkpoint_every, steps)),
            "batch": min(plan.batch, sequences),
            "seed": seed,
        }
    )


def rendered(session: Session, rows: Sequence[int]) -> list[Rendered]:
    wanted = set(rows)
    return [r for r in session.rendered["train"] if r.row in wanted]


def scores(session: Session, branch: Branch, side: str) -> list[Score]:
    """The branch's answers to dev or test, trained first where it is not."""
    run = Run(session.run.path / "branches" / branch.name)
    rows = session.rows(side)
    file = run.scores / f"{side}.jsonl"
    if file.exists():
        lines = list(runs.read_lines(file))
        if [line["row"] for line in lines] == rows:
            return lines
    model = _trained(session, branch, run)
    if side == "test":
        session.run.event("test_read", rows=len(rows), branch=branch.name)
    (tuned,) = session.families["tuned"]
    chosen = [session.data.examples[i] for i in rows]
    with session.talk.bar(f"{side} {branch.name}", len(chosen)) as note:
        told = functools.partial(note, words="rows")
        found = evaluate.judge(model, tuned, chosen, session.data.task, session.template, session.how, branch.plan, told)
    lines = [{"row": i, **s} for i, s in zip(rows, found, strict=True)]
    runs.write_lines(file, lines)
    return lines


def _trained(session: Session, branch: Branch, run: Run) -> Any:
    model = models.load(session.facts.path, models.torch_dtype(branch.plan.dtype))
    adapters.attach(model, branch.plan.adapter, branch.plan.seed)
    model.to(session.machine.device)
    model.lean = session.facts.lean and lean.applies(model)
    parameters = adapters.trainable(model)
    if run.training.exists():
        checkpoints.load_weights(run.checkpoints / "final.safetensors", parameters)
        return model
    run.checkpoints.mkdir(mode=0o700, parents=True, exist_ok=True)
    hashes = {**session.hashes, "branch": f"{branch.plan.model_dump_json(exclude={'estimate', 'reasons'})} {branch.rows}"}
    with session.talk.bar(f"train {branch.name}", branch.plan.steps) as note:

        def watch(p: loop.Progress) -> None:
            note(1, f"loss {p.loss:.3f}")

        result = loop.train(model, sft, rendered(session, branch.rows), session.rendered["dev"], branch.plan, run, hashes, watch)
    checkpoints.save_weights(run.checkpoints / "final.safetensors", parameters)
    runs.write_json(run.training, asdict(result))
    return model
