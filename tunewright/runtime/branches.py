"""Branches: extra training runs that belong to a run, on other rows or with another seed, learning rate or teacher.

A branch has its own folder, branches/NAME. All that it is trained on is written there first: then any process can train
it, this one, another of this machine or one of a cluster. It is trained once, and resumed if interrupted.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from tunewright.core import records, run_folder
from tunewright.core.chosen import chosen_scale
from tunewright.core.config import Plan
from tunewright.core.errors import RunError, TrainError, TunewrightError
from tunewright.core.records import BranchFailure, BranchFile, BranchTraining, DevNats, Side, StepLine
from tunewright.core.run_folder import Run, make_folder, write_atomic
from tunewright.core.run_folder import require as require_file
from tunewright.core.words import counted
from tunewright.data.scores import Score
from tunewright.fan import out
from tunewright.fan.jobs import Job
from tunewright.judge.arms.arm import Arm
from tunewright.model import adapters, likelihood
from tunewright.model.language_model import LanguageModel
from tunewright.runtime import weights
from tunewright.runtime.answers import AnswerRequest
from tunewright.runtime.context import Context, Setup, Work
from tunewright.runtime.receipt import input_hashes
from tunewright.runtime.weights import Weights
from tunewright.system import crowding, machine
from tunewright.tokens import render_cache
from tunewright.tokens.render_cache import RenderedRows
from tunewright.tokens.sequences import TrainRow, digest, flat
from tunewright.train import checkpoints, loop, together

UNTRAINABLE = ("TRAIN_NOT_FINITE", "TRAIN_MEMORY", "TRAIN_WORKER")  # what may be wrong with one branch alone


@dataclass(frozen=True)
class Branch:
    """``rows`` are trained on, ``dev`` decides when to stop. ``scale``: its trained update is multiplied by it for its
    answers. ``measured``: whether the loss of each dev row is measured wherever its training pauses or ends."""

    name: str
    plan: Plan
    rows: tuple[TrainRow, ...]
    dev: tuple[TrainRow, ...]
    scale: float
    measured: bool = False


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
    require(work.setup, [branch])
    return weights.at_scale(work.run.branch(branch.name), branch.plan, branch.scale)


def begun(setup: Setup, name: str) -> Run:
    """A branch as it was begun, trained to its end if it is not yet."""
    run = setup.context.run.branch(name)
    require(setup, [_read(run, name)[0]])
    return run


def require(setup: Setup, branches: Sequence[Branch]) -> None:
    """Trains those that are not trained yet, several at a time where the run's place allows it. Raises the error of the
    first that fails."""
    for error in advance(setup, branches).values():
        raise error


def advance(setup: Setup, branches: Sequence[Branch], fraction: float = 1.0) -> dict[str, TunewrightError]:
    """Trains branches to the end, or to a ``fraction`` of their steps. Returns the errors of those that cannot be
    trained, by name; raises any other, once the rest is done."""
    context, failed = setup.context, dict[str, TunewrightError]()
    stored: dict[int, str] = {}  # by identity: recipes are trained on the same rows
    for branch in branches:
        run = context.run.branch(branch.name)
        for rows in (branch.rows, branch.dev):
            if id(rows) not in stored:
                stored[id(rows)] = _stored_rows(run, rows)
        _begin(setup, branch, stored[id(branch.rows)], stored[id(branch.dev)])
        if failure := records.existing(_failure(run), BranchFailure):
            failed[branch.name] = TrainError(failure.code, failure.message, where=failure.where, fix=failure.fix)
    runs = [(b, context.run.branch(b.name)) for b in branches if b.name not in failed]
    waiting = [branch for branch, run in runs if not _is_done(run, _plan(run), fraction)]
    if context.where.on != "here":
        setup.models.release()  # this process only waits
        failed |= out.run([_job(context, b, fraction) for b in waiting], context.where, context.console)
    for names in _joint(setup, waiting) if context.where.on == "here" else []:
        failed |= train(setup, names, fraction, context.where.attempt)
    for other in failed.values():
        if other.code not in UNTRAINABLE:
            raise other
    return failed


def _joint(setup: Setup, waiting: Sequence[Branch]) -> Iterator[list[str]]:
    """The branches that this process trains in joint passes: of one kind, by the plans that they were begun with."""
    at_once, groups = setup.context.where.at_once or 1, dict[object, list[str]]()
    for branch in waiting:
        kind = together.kind_of(_plan(setup.context.run.branch(branch.name)))
        groups.setdefault(kind or branch.name, []).append(branch.name)
    for group in groups.values():
        yield from (group[first : first + at_once] for first in range(0, len(group), at_once))


def train(setup: Setup, names: Sequence[str], fraction: float = 1.0, attempt: str = "") -> dict[str, TunewrightError]:
    """Trains branches in this process, several of them in joint passes, from their files and no others, so that it
    does not matter which process it is. ``attempt``: as in `run_folder.writing`. Returns the errors of those that
    cannot be trained, by name. Raises RUN_LOCKED, RESUME_MISMATCH and what else is wrong with all of them."""
    with ExitStack() as locks:
        branches, hashes = [], []
        for name in names:
            run = setup.context.run.branch(name)
            branch, stored = _read(run, name)
            locks.enter_context(run_folder.writing(run, attempt))
            if not _is_done(run, branch.plan, fraction):
                branches.append(branch)
                hashes.append(_same_hashes(setup, branch, stored))
        if not branches:
            return {}
        before = torch.get_num_threads()
        try:
            return _train(setup, branches, hashes, fraction)
        except TrainError as error:
            if error.code != "RUN_INTERRUPTED":
                raise
            (problem,) = error.problems
            fix = f"`tunewright run {setup.context.run.path}` continues from there."  # not the branch's folder
            raise TrainError("RUN_INTERRUPTED", problem.message, where=problem.where, fix=fix) from None
        finally:
            crowding.use(before)


def _same_hashes(setup: Setup, branch: Branch, stored: BranchFile) -> dict[str, str]:
    hashes = _hashes(setup, branch)
    changed = [key for key, value in hashes.items() if stored.hashes.get(key) != value]
    if changed:
        raise RunError(
            "RESUME_MISMATCH",
            f"{' and '.join(changed)} differ from what this branch was created with.",
            where=str(setup.context.run.branch(branch.name).path),
            fix="restore them, on every machine that trains branches; or start a new run.",
        )
    return hashes


def _train(
    setup: Setup, branches: Sequence[Branch], hashes: Sequence[dict[str, str]], fraction: float
) -> dict[str, TunewrightError]:
    """Together if they can be, otherwise one after another."""
    if len(branches) > 1:
        models = setup.models.several([branch.plan for branch in branches])
        if together.can_join(models):
            inputs = [_inputs(setup, b, model, own) for b, model, own in zip(branches, models, hashes, strict=True)]
            return _trained(setup, branches, inputs, fraction)
        del models  # its base would be in memory twice
        setup.context.console.say("  one after another: joint passes need adapters on all linear layers")
    failed: dict[str, TunewrightError] = {}
    for branch, own in zip(branches, hashes, strict=True):
        model = setup.models.untrained(branch.plan)
        failed |= _trained(setup, [branch], [_inputs(setup, branch, model, own)], fraction)
    return failed


def _inputs(setup: Setup, branch: Branch, model: LanguageModel, hashes: dict[str, str]) -> loop.TrainingInputs:
    run = setup.context.run.branch(branch.name)
    make_folder(run.checkpoints)
    crowding.use(branch.plan.threads)
    return loop.with_precomputed(loop.TrainingInputs(model, branch.plan, branch.rows, branch.dev, run, hashes))


def _trained(
    setup: Setup, branches: Sequence[Branch], inputs: Sequence[loop.TrainingInputs], fraction: float
) -> dict[str, TunewrightError]:
    """Trains them, in joint passes if they are several, and writes what is measured. Returns errors by name."""
    until = [step_at(branch.plan, fraction) for branch in branches]
    begun = sum(checkpoints.newest(own.run.checkpoints).step for own in inputs)
    name = branches[0].name if len(branches) == 1 else counted(len(branches), "branch", "branches")
    failed: dict[str, TunewrightError] = {}
    crowding.use(branches[0].plan.threads)
    with setup.context.console.bar(f"train {name}", sum(until), begun) as tick:
        results = _results(inputs, until, lambda line: tick(1, f"loss {line.loss:.3f}"))
    for branch, own, step, result in zip(branches, inputs, until, results, strict=True):
        if isinstance(result, TrainError):
            failed[branch.name] = result
            if result.code == "TRAIN_NOT_FINITE":  # it would be so again
                (problem,) = result.problems
                records.write(_failure(own.run), BranchFailure.model_validate(problem))
            continue
        if branch.measured:
            own.model.module.eval()
            nats_R = likelihood.nats(own.model, flat(branch.dev), branch.plan.layout)
            records.write(dev_file(own.run, step), DevNats(step=result.steps, nats=tuple(map(float, nats_R))))
        if step == branch.plan.steps:
            sha256 = checkpoints.save_weights(own.run.weights, adapters.update_tensors(own.model.module))
            records.write(own.run.training, BranchTraining(**dataclasses.asdict(result), weights_sha256=sha256))
    return failed


def _results(
    inputs: Sequence[loop.TrainingInputs], until: Sequence[int], progress: Callable[[StepLine], None]
) -> list[loop.Trained | TrainError]:
    if len(inputs) > 1:
        return together.train(inputs, progress, until)
    run = inputs[0].run
    try:
        return [loop.train(inputs[0], progress, until=until[0])]
    except TrainError as error:
        if error.code not in UNTRAINABLE:
            raise
        return [error]
    except (MemoryError, RuntimeError) as error:
        if not machine.out_of_memory(error):
            raise
        what, fix = f"out of memory while `{run.name}` was trained.", "leave out what needs more memory than the rest."
        return [TrainError("TRAIN_MEMORY", what, where=str(run.path), fix=fix)]


def _hashes(setup: Setup, branch: Branch) -> dict[str, str]:
    """Of what its weights depend on."""
    content = hashlib.sha256(digest(branch.rows).encode())
    content.update(branch.plan.model_dump_json(exclude={"estimate", "reasons"}).encode())
    return {**input_hashes(setup.context.data, setup.inputs, branch.plan), "branch": content.hexdigest()}


def dev_file(run: Run, step: int) -> Path:
    """The loss of each dev row after so many steps of a branch."""
    return run.path / f"dev-{step}.json"


def _failure(run: Run) -> Path:
    return run.path / "failed.json"


def _plan(run: Run) -> Plan:
    return records.read(run.branch_file, BranchFile).plan


def step_at(plan: Plan, fraction: float) -> int:
    """The step at which a branch pauses: one at which the dev loss is measured."""
    if fraction == 1.0:
        return plan.steps
    return min(plan.steps, max(1, round(fraction * plan.steps / plan.eval_every)) * plan.eval_every)


def _is_done(run: Run, plan: Plan, fraction: float) -> bool:
    return run.training.exists() if fraction == 1.0 else dev_file(run, step_at(plan, fraction)).exists()


def _begin(setup: Setup, branch: Branch, train: str, dev: str) -> None:
    """Writes what another process needs to train the branch. ``train``, ``dev``: names of its files of rows. One that
    was begun keeps its plan, with its number of threads, because its last bits depend on it. Raises RESUME_MISMATCH if
    it was begun with other data."""
    context, run = setup.context, setup.context.run.branch(branch.name)
    if stored := records.existing(run.branch_file, BranchFile):
        _same_hashes(setup, dataclasses.replace(branch, plan=stored.plan), stored)
        return
    # Not more than its plan has: after a sweep with several jobs at a time, the run itself was trained with few.
    threads = min(branch.plan.threads, out.threads(context.where, setup.inputs.machine.cores))
    plan = branch.plan.model_copy(update={"threads": threads})
    hashes = _hashes(setup, dataclasses.replace(branch, plan=plan))
    records.write(run.branch_file, BranchFile(plan=plan, train=train, dev=dev, measured=branch.measured, hashes=hashes))


def _stored_rows(run: Run, rows: Sequence[TrainRow]) -> str:
    """The name of their file, which all branches with these rows share; written again if it is damaged."""
    file = run.path.parent / "rows" / f"{digest(rows)[:32]}.safetensors"
    if render_cache.read(file) is None:
        write_atomic(file, render_cache.to_bytes(RenderedRows(list(rows), [])))
    return file.name


def _read(run: Run, name: str) -> tuple[Branch, BranchFile]:
    """Raises RUN_DAMAGED, RUN_INCOMPLETE."""
    require_file(run, run.branch_file, "run")
    file = records.read(run.branch_file, BranchFile)
    rows, dev = (render_cache.read(run.path.parent / "rows" / stored) for stored in (file.train, file.dev))
    if rows is None or dev is None:
        raise RunError(
            "RUN_DAMAGED",
            f"the rows of branch {name} cannot be read.",
            where=str(run.path.parent / "rows"),
            fix="repeat the command that started the run: it writes them again.",
        )
    return Branch(name, file.plan, tuple(rows.rows), tuple(dev.rows), 1.0, file.measured), file


def _job(context: Context, branch: Branch, fraction: float) -> Job:
    run = context.run.branch(branch.name)
    plan, where = _plan(run), context.where
    words = [str(context.run.path.absolute()), "--branch", branch.name]
    words += ["--fraction", f"{fraction:g}"] if fraction < 1 else []
    words += ["--attempt", where.attempt] if where.attempt else []
    step = step_at(plan, fraction)
    return Job(branch.name, "tunewright.stages.worker", tuple(words), run.path.absolute(), step, plan.threads)
