"""The training loop: steps, dev losses, checkpoints and metrics.jsonl, resumed where a run stopped.

It has no hooks: to follow it, pass ``progress`` or read the run folder.
"""

from __future__ import annotations

import hashlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from tunewright import methods
from tunewright.core import records
from tunewright.core.config import REWARDED, Plan
from tunewright.core.errors import TrainError
from tunewright.core.records import METRICS, CheckpointState, StartLine, StepLine
from tunewright.core.run_folder import Run, write_atomic
from tunewright.methods.method import Progress
from tunewright.model.language_model import LanguageModel
from tunewright.system import crowding, heap
from tunewright.tokens import render_cache
from tunewright.tokens.render_cache import RenderedRows
from tunewright.tokens.sequences import TrainRow, digest
from tunewright.train import checkpoints
from tunewright.train.ranks import ALONE, Ranks
from tunewright.train.sampling.on_policy import OnPolicy
from tunewright.train.sampling.rollouts import Rollouts
from tunewright.train.step import Learner, Step, dev_loss, learning_rate, make_learner, take_step


@dataclass(frozen=True)
class Trained:
    """How training ended. With dev rows, the model is left with the weights of ``best_step``. ``of_rewards``: whether
    dev losses are minus mean rewards."""

    steps: int
    stopped_early: bool
    best_step: int | None
    best_dev_loss: float | None
    first_dev_loss: float | None
    seconds: float
    tokens: int
    crowded_steps: int | None
    of_rewards: Literal[True] | None = None


@dataclass(frozen=True)
class TrainingInputs:
    """What `train` reads, and the run folder that it writes to. ``hashes``: of the inputs, which must not change before
    a run is resumed. ``rollouts``: makes the rows of a step of prompts, for methods that learn from what the model
    writes. It is a part of the inputs and not of the method, because it reads graders, the chat template and the run
    folder, and a method may touch none of them."""

    model: LanguageModel
    plan: Plan
    rows: Sequence[TrainRow]
    dev: Sequence[TrainRow]
    run: Run
    hashes: dict[str, str]
    rollouts: Rollouts | OnPolicy | None = None


def with_precomputed(training: TrainingInputs, progress: Progress = lambda _: None) -> TrainingInputs:
    """The inputs after `methods.precomputed`, with the digest of the rows among the hashes: what a model computed
    before the first step is part of what a resumed run must find unchanged. It is stored in the run folder, because
    another machine, which may resume the run, would round it otherwise."""
    given = [*training.rows, *training.dev]
    before = digest(given)
    key = hashlib.sha256(f"{before} {training.plan.method} {sorted(training.hashes.items())}".encode()).hexdigest()
    file = training.run.path / "data" / f"precomputed-{key[:32]}.safetensors"
    if stored := render_cache.read(file):
        done = stored.rows
    else:
        sides = (training.rows, training.dev)
        done = [row for side in sides for row in methods.precomputed(training.model, side, training.plan, progress)]
    after = before if all(a is b for a, b in zip(given, done, strict=True)) else digest(done)
    if stored is None and after != before:
        write_atomic(file, render_cache.to_bytes(RenderedRows(done, [])))
    rows, dev = done[: len(training.rows)], done[len(training.rows) :]
    return replace(training, rows=rows, dev=dev, hashes={**training.hashes, "rows": after})


def train(
    training: TrainingInputs,
    progress: Callable[[StepLine], None] = lambda _: None,
    ranks: Ranks = ALONE,
    until: int | None = None,
) -> Trained:
    """Train the model in place from the newest checkpoint of the run (or from the start) to the end of the plan, or, to
    be continued later, to step ``until``. ``progress`` is called with the line of each step. Of several ``ranks``, all
    call this, with the same inputs; the first writes.

    Raises TRAIN_NOT_FINITE (nothing of that step is kept), RUN_INTERRUPTED after saving, RUN_DISK, RESUME_MISMATCH.
    """
    plan, started = training.plan, time.monotonic()
    last = min(until or plan.steps, plan.steps)
    crowd, kept = crowding.alone(plan.threads), heap.Kept()
    student, state = start_or_resume(training, ranks)
    with interrupts() as interrupted, crowding.restored():
        while not is_over(state, plan, last):
            if plan.adapt_threads:
                crowd = crowding.adapted(crowd)
            crowding.use(crowd.threads)
            start = time.monotonic()
            rows = training.rows
            if training.rollouts is not None:
                rows = training.rollouts.sampled(student.model, rows, plan, state.step)
            done = take_step(student, rows, plan, state.step, ranks)
            taken = Taken(done, round(time.monotonic() - start, 4), crowd.threads)
            state = record_step(training, student, state, taken, progress, ranks)
            kept = heap.bounded(kept)
            stop = ranks.any(interrupted.is_set())  # all after the same step, whoever was asked
            # Between rollouts: a stored one is used only by the weights that drew it.
            stop = stop and state.step % plan.options.num_iterations == 0
            if ranks.first and (stop or is_over(state, plan, last) or state.step % plan.checkpoint_every == 0):
                save(training, student, state)
            if stop and not is_over(state, plan, plan.steps):
                ranks.wait()
                raise interruption(training, state)
    ranks.wait()  # until everything is written
    return finished(training, student, state, time.monotonic() - started)


def start_or_resume(training: TrainingInputs, ranks: Ranks = ALONE) -> tuple[Learner, CheckpointState]:
    """A learner in the state of the newest checkpoint; without one, with the dev loss before the first step."""
    plan, run, hashes = training.plan, training.run, training.hashes
    student = make_learner(training.model, plan)
    state = checkpoints.restore(run.checkpoints, student.saved, student.optimizer, hashes)
    state = state or _initial(hashes, None)
    ranks.wait()  # until all have read what may now be removed
    if ranks.first:
        checkpoints.tidy(run.checkpoints, plan.checkpoint_keep)
        _drop_later_lines(run, state.step)
    if state.step == 0 and training.dev:
        first = _dev_loss(training, 0, ranks)
        state = _initial(hashes, first)
        if ranks.first:
            records.append_line(run.metrics, StartLine(step=0, dev_loss=first))
            state = _with_best(run, student, state)
    return student, state


def _dev_loss(training: TrainingInputs, step: int, ranks: Ranks) -> float:
    if training.rollouts is not None:
        return training.rollouts.dev_loss(training.model, training.dev, training.plan, step)
    return dev_loss(training.model, training.dev, training.plan, ranks)


def save(training: TrainingInputs, student: Learner, state: CheckpointState) -> None:
    folder, keep = training.run.checkpoints, training.plan.checkpoint_keep
    checkpoints.save(folder, student.saved, student.optimizer, state, keep)


def interruption(training: TrainingInputs, state: CheckpointState) -> TrainError:
    """The error of a training that was asked to stop, and has saved."""
    run = training.run.path
    return TrainError(
        "RUN_INTERRUPTED",
        f"stopped after step {state.step} of {training.plan.steps}; progress is saved.",
        where=str(run),
        fix=f"`tunewright run {run}` continues from there.",
    )


def finished(training: TrainingInputs, student: Learner, state: CheckpointState, seconds: float) -> Trained:
    """The end of a training, with the weights of the lowest dev loss. ``seconds``: of this process, which is not the
    only one if training was continued."""
    plan, run = training.plan, training.run
    if state.best_step is not None:
        checkpoints.load_weights(checkpoints.best_file(run.checkpoints, state.best_step), student.saved)
    lines = list(records.read_lines(run.metrics, METRICS))
    steps = [line for line in lines if isinstance(line, StepLine)]
    return Trained(
        steps=state.step,
        stopped_early=state.step < plan.steps,
        best_step=state.best_step,
        best_dev_loss=state.best,
        first_dev_loss=next((line.dev_loss for line in lines if isinstance(line, StartLine)), None),
        seconds=round(max(seconds, sum(line.seconds for line in steps)), 1),
        tokens=sum(line.tokens for line in steps),
        crowded_steps=sum(line.threads is not None for line in steps) or None,
        of_rewards=True if plan.method in REWARDED else None,
    )


@dataclass(frozen=True)
class Taken:
    """A step, the seconds that it took, and the threads that it had."""

    done: Step
    seconds: float
    threads: int


def record_step(
    training: TrainingInputs,
    student: Learner,
    state: CheckpointState,
    taken: Taken,
    progress: Callable[[StepLine], None],
    ranks: Ranks = ALONE,
) -> CheckpointState:
    """The state after a step: measure the dev loss where it is due, and log both."""
    plan, run, done = training.plan, training.run, taken.done
    step, dev = state.step + 1, None
    if training.dev and (step % plan.eval_every == 0 or step == plan.steps):
        dev = _dev_loss(training, step, ranks)
    line = StepLine(
        step=step,
        loss=done.loss,
        lr=learning_rate(plan, state.step),
        grad_norm=done.norm,
        tokens=done.tokens,
        computed=done.computed,
        supervised=done.supervised,
        seconds=taken.seconds,
        metrics=done.metrics or None,
        dev_loss=dev,
        threads=taken.threads if taken.threads < plan.threads else None,
    )
    state = _advanced(state, dev)
    if ranks.first:
        if state.best_step == state.step:
            state = _with_best(run, student, state)
        records.append_line(run.metrics, line)
    progress(line)
    return state


def _initial(hashes: dict[str, str], dev: float | None) -> CheckpointState:
    """The state before the first step, given the dev loss if there are dev rows."""
    best_step = None if dev is None else 0
    return CheckpointState(step=0, hashes=hashes, best=dev, best_step=best_step, best_sha256=None, stale_evals=0)


def _with_best(run: Run, student: Learner, state: CheckpointState) -> CheckpointState:
    """The state, after writing its weights as the best so far."""
    file = checkpoints.best_file(run.checkpoints, state.step)
    return state.model_copy(update={"best_sha256": checkpoints.save_weights(file, student.saved)})


def is_over(state: CheckpointState, plan: Plan, last: int) -> bool:
    """Whether a training is at its ``last`` step, or has run out of patience."""
    return state.step >= last or 0 < plan.patience <= state.stale_evals


def _advanced(state: CheckpointState, dev: float | None) -> CheckpointState:
    """The state one step later, given the dev loss if it was measured."""
    step = state.step + 1
    if dev is None:
        return state.model_copy(update={"step": step})
    if state.best is None or dev < state.best:
        return state.model_copy(update={"step": step, "best": dev, "best_step": step, "stale_evals": 0})
    return state.model_copy(update={"step": step, "stale_evals": state.stale_evals + 1})


def _drop_later_lines(run: Run, step: int) -> None:
    """Remove the lines of steps after the checkpoint, which would be logged twice."""
    lines = list(records.read_lines(run.metrics, METRICS))
    kept = [line for line in lines if line.step <= step] if step else []
    if len(kept) < len(lines):
        records.write_lines(run.metrics, kept)


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; a second Ctrl-C ends the process as usual. SIGTERM may come twice: a batch
    system sends it to torchrun and to what torchrun has started, and torchrun passes it on."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(number: int, _: Any) -> None:
        if event.is_set() and number == signal.SIGINT:
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)
        event.set()

    before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
