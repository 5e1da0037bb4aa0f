"""Train: from the newest checkpoint, or from the start, to the end of the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import torch

from tunewright.core import records, run_folder, swept
from tunewright.core.config import DISTILLED, PREFERENCE, RATED, REWARDED, Plan
from tunewright.core.errors import ConfigError
from tunewright.core.records import BranchTraining, Receipt, StepLine, Training
from tunewright.core.run_folder import Run, make_folder
from tunewright.model import adapters
from tunewright.model.language_model import LanguageModel
from tunewright.runtime import branches, weights
from tunewright.runtime.context import Context, Work
from tunewright.runtime.grading import sampling
from tunewright.runtime.models import Models
from tunewright.runtime.receipt import code_sha256, input_hashes
from tunewright.stages import process
from tunewright.stages.stage import Stage
from tunewright.system import machine
from tunewright.train import checkpoints, loop, sharded
from tunewright.train.ranks import ALONE, Ranks


def train(work: Work, ranks: Ranks = ALONE) -> Training:
    """Writes metrics.jsonl and checkpoints/, with the trained weights in checkpoints/final.safetensors. Of several
    ``ranks``, the first does. Raises RANKS_DIFFER."""
    run, plan, inputs, console = work.run, work.plan, work.inputs, work.console
    if (branch := swept.branch_of(run)) and _is_of(plan, swept.plan_of(run)):
        return _adopted(work, branches.begun(work.setup, branch.path.name), ranks)
    step = _begin(work) if ranks.first else 0
    ranks.wait()
    _check_ranks(plan, ranks)
    model = _model(work, ranks)
    if ranks.first:
        _keep_start(work, model.module)
    hashes = input_hashes(work.data, inputs, plan)
    training_inputs = _precomputed(
        work, loop.TrainingInputs(model, plan, inputs.rows["train"], inputs.rows["dev"], run, hashes)
    )
    sampled = sampling.of(work.answers, model, work.config.reward.sampler)  # a second teacher, after the first is gone
    training_inputs = replace(training_inputs, rollouts=sampled)
    if ranks.world > 1:
        facts = {"model": inputs.facts.sha256, "torch": torch.__version__, "code": code_sha256()}
        if plan.adapter.init != "zero":  # computed from the base, whose last bits depend on the processor
            facts["initial values"] = checkpoints.digest(adapters.update_tensors(model.module))
        ranks.require_same(facts | training_inputs.hashes)
    sign = -1 if plan.method in REWARDED else 1
    with console.bar("train", plan.steps, step) as tick:

        def progress(line: StepLine) -> None:
            dev = f" dev {sign * line.dev_loss:.3f}" if line.dev_loss is not None else ""
            crowded = f", {line.threads} of {plan.threads} threads: others use the cores" if line.threads else ""
            shown = f"reward {(line.metrics or {}).get('reward', 0.0):.3f}" if sign < 0 else f"loss {line.loss:.3f}"
            tick(1, f"{shown}{dev} {line.tokens / max(line.seconds, 1e-9):.0f} tok/s{crowded}")

        result = loop.train(training_inputs, progress, ranks)
    if result.crowded_steps and ranks.first:
        receipt = records.read(run.receipt, Receipt)
        records.write(run.receipt, receipt.model_copy(update={"crowded_steps": result.crowded_steps}))
    sha256 = checkpoints.save_weights(run.weights, adapters.update_tensors(model.module)) if ranks.first else ""
    return _with_sizes(work, model.module, BranchTraining(**asdict(result), weights_sha256=sha256))


def _precomputed(work: Work, training: loop.TrainingInputs) -> loop.TrainingInputs:
    if work.plan.method not in (*PREFERENCE, *RATED, *DISTILLED):
        return loop.with_precomputed(training)
    rows, who = len(training.rows) + len(training.dev), "teacher" if work.plan.teacher else "model"
    with work.console.bar("before", rows, unit=f"rows read by the {who} before training") as tick:
        return loop.with_precomputed(training, tick)


def _check_ranks(plan: Plan, ranks: Ranks) -> None:
    samples = plan.method in REWARDED or (plan.teacher is not None and plan.teacher.settings.on_policy)
    if samples and ranks.world > 1:
        message = f"train.method={plan.method} trains in one process: its samples are drawn there."
        raise ConfigError("CONFIG_CONFLICT", message, where="train.method", fix="start it without torchrun.")


def _model(work: Work, ranks: Ranks) -> LanguageModel:
    """Loaded to be trained; in shards over several ``ranks`` if the plan says so, and then not before on a GPU, which
    it may not fit."""
    facts, device = work.inputs.facts, work.inputs.machine.device
    if not (work.plan.fsdp and ranks.world > 1):
        return work.models.untrained(work.plan)
    work.models.release()
    return sharded.sharded(Models(facts, "cpu").untrained(work.plan), ranks, device)


def _begin(work: Work) -> int:
    """The step that training starts after; reported to the user."""
    run, console = work.run, work.console
    make_folder(run.checkpoints)
    newest = checkpoints.newest(run.checkpoints)
    step = newest.step
    for what in newest.damaged:
        run.event("checkpoint_damaged", what=what)
        console.warn(f"damaged checkpoint {what}; continuing from an older one, or from the start")
    if newest.folder:
        console.say(f"resuming at step {step + 1}, from {newest.folder}")
    return step


def _is_of(plan: Plan, other: Plan | None) -> bool:
    """Whether they train the same."""
    return other is not None and _content(plan) == _content(other)


def _content(plan: Plan) -> dict[str, object]:
    return plan.model_dump(exclude={"estimate", "reasons"})


def _adopted(work: Work, branch: Run, ranks: Ranks) -> Training:
    """The training of the recipe that a sweep has chosen, which is this run's: nothing is trained again."""
    run, done = work.run, records.read(branch.training, BranchTraining)
    checkpoints.check_weights(branch.weights, done.weights_sha256)
    module = work.models.untrained(work.plan).module
    if ranks.first:
        _keep_start(work, module)
        run_folder.write_atomic(run.weights, branch.weights.read_bytes())
        run_folder.write_atomic(run.metrics, branch.metrics.read_bytes())
    return _with_sizes(work, module, done)


def _keep_start(work: Work, module: torch.nn.Module) -> None:
    """Keeps the adapter that training continues from, with which an arm answers."""
    if work.plan.adapter.start is not None:
        make_folder(work.run.checkpoints)
        checkpoints.save_weights(weights.start_file(work.run), adapters.update_tensors(module))


def _with_sizes(work: Work, module: torch.nn.Module, done: BranchTraining) -> Training:
    trained = sum(p.numel() for p in adapters.trainable(module).values())
    frozen = work.inputs.facts.parameters if work.plan.adapter.kind != "none" else 0  # whether or not they are packed
    return Training(**dict(done), peak_gb=round(machine.peak_gb(), 2), trained=trained, total=frozen + trained)


def train_separately(context: Context) -> Training:
    """`train` in a separate process, which writes training.json."""
    process.train(context)
    return records.read(context.run.training, Training)


def lines(done: Training) -> Sequence[str]:
    early = f", stopped early after step {done.steps}" if done.stopped_early else ""
    crowded = f"; {done.crowded_steps} steps with fewer threads, beside other processes" if done.crowded_steps else ""
    if done.best_dev_loss is None:
        return [f"trained: {done.steps} steps{early}, {done.seconds:.0f} s{crowded}"]
    assert done.first_dev_loss is not None
    what, sign = ("reward", -1) if done.of_rewards else ("loss", 1)
    return [
        f"trained: dev {what} {sign * done.first_dev_loss:.3f} -> {sign * done.best_dev_loss:.3f} "
        f"(step {done.best_step}){early}, {done.seconds:.0f} s{crowded}"
    ]


STAGE = Stage(
    name="train",
    run=lambda inputs: train(inputs.work()),
    run_separately=train_separately,
    lines=lines,
)
