"""Another training beside the run: the same recipe on other rows, another seed, another rate, or another teacher.

A branch lives in branches/NAME of the run folder, is continued where it stopped, and is not trained again once it is whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tunewright.core import run_folder
from tunewright.core.config import Plan
from tunewright.core.run_folder import Run
from tunewright.judge.arms.families import Arm
from tunewright.judge.evaluate import Score
from tunewright.model import adapters
from tunewright.model.language_model import LanguageModel
from tunewright.run.session import Session
from tunewright.tokens.sequences import TrainRow, digest
from tunewright.train import checkpoints, loop


@dataclass(frozen=True)
class Branch:
    """What is learned (``rows``), what stops early (``dev``), how, and which share of the update speaks."""

    name: str
    plan: Plan
    rows: tuple[TrainRow, ...]
    dev: tuple[TrainRow, ...]
    share: float = 1.0


def of_rows(session: Session, name: str, rows: Sequence[int], share: float, seed: int) -> Branch:
    """The run's recipe on some of its training rows: as many epochs, so fewer steps; as much of the update as the run keeps."""
    wanted = set(rows)
    chosen = tuple(r for r in session.rendered["train"] if r.row in wanted)
    plan = smaller(session.plan, share, len(chosen), seed)
    return Branch(name, plan, chosen, tuple(session.rendered["dev"]), session.run.scale)


def smaller(plan: Plan, share: float, sequences: int, seed: int) -> Plan:
    """The recipe for a share of the rows; every number that does not follow from it as it was."""
    steps = max(1, round(plan.steps * share))
    return plan.model_copy(
        update={
            "rows": sequences,
            "steps": steps,
            "warmup_steps": min(plan.warmup_steps, max(1, round(plan.warmup_steps * share))),
            "eval_every": max(1, round(plan.eval_every * share)),
            "checkpoint_every": max(1, min(plan.checkpoint_every, steps)),
            "batch_size": min(plan.batch_size, sequences),
            "seed": seed,
        }
    )


def scores(session: Session, branch: Branch, side: str, system: Arm | None = None, rows: list[int] | None = None) -> list[Score]:
    """The branch's answers to dev or test (or to some ``rows`` of train), prompted as the tuned model is or as ``system`` says;
    trained first where it is not."""
    (tuned,) = session.families["tuned"]
    asked = system or tuned
    file = session.run.branch(branch.name).scores / f"{side}-{asked.name}.jsonl"
    return session.judged(file, side, asked, rows, lambda: trained(session, branch), branch.name)


def trained(session: Session, branch: Branch) -> LanguageModel:
    """A copy of the base with the branch's weights."""
    run, model = session.run.branch(branch.name), session.fresh(branch.plan)
    if not run.training.exists():
        _train(session, branch, run, model)
    checkpoints.load_trained(run, model.module, branch.share)
    return model


def _train(session: Session, branch: Branch, run: Run, model: LanguageModel) -> None:
    run.checkpoints.mkdir(mode=0o700, parents=True, exist_ok=True)
    content = hashlib.sha256(digest(branch.rows).encode())
    content.update(branch.plan.model_dump_json(exclude={"estimate", "reasons"}).encode())
    with session.talk.bar(f"train {branch.name}", branch.plan.steps) as note:

        def watch(p: loop.Progress) -> None:
            note(1, f"loss {p.loss:.3f}")

        hashes = {**session.hashes, "branch": content.hexdigest()}
        training = loop.Training(model, branch.plan, branch.rows, branch.dev, run, hashes)
        result = loop.train(loop.annotated(training), watch)
    written = checkpoints.save_weights(run.weights, adapters.trainable(model.module))
    run_folder.write_json(run.training, {**asdict(result), "weights_sha256": written})
