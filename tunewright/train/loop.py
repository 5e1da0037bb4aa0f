"""The training loop: steps, dev losses, checkpoints and metrics.jsonl, resumed where a run stopped.

It has no hooks: to follow it, pass ``progress`` or read the run folder.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from tunewright.core.config import Plan
from tunewright.core.errors import TrainError
from tunewright.core.run_folder import Run, append_line, read_lines, write_lines
from tunewright.methods import METHODS
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.sequences import TrainRow, digest
from tunewright.train import checkpoints
from tunewright.train.step import Learner, Step, dev_loss, learner, learning_rate, take_step


@dataclass(frozen=True)
class Progress:
    """One finished step. ``loss`` and ``dev_loss``: per unit of the method's weight (nats per supervised token, in
    fine-tuning). ``tokens``: of the rows; with shared prefixes, fewer were computed. ``seconds``: of the step."""

    step: int
    steps: int
    loss: float
    dev_loss: float | None
    lr: float
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Trained:
    """How training ended. With dev rows, the model is left with the weights of ``best_step``."""

    steps: int
    stopped_early: bool
    best_step: int | None
    best_dev_loss: float | None
    first_dev_loss: float | None
    seconds: float
    tokens: int


@dataclass(frozen=True)
class Training:
    """All that one training reads, and the run folder it writes to. ``hashes``: of the inputs, which must not change
    before a run is resumed."""

    model: LanguageModel
    plan: Plan
    rows: Sequence[TrainRow]
    dev: Sequence[TrainRow]
    run: Run
    hashes: dict[str, str]


def annotated(training: Training) -> Training:
    """The training with its rows annotated by the method, and their digest among the hashes: what a model computed
    before the first step is part of what a resumed run must find unchanged."""
    method, model, plan = METHODS[training.plan.method], training.model, training.plan
    with torch.no_grad():
        rows, dev = (method.annotate(model, side, plan) for side in (training.rows, training.dev))
    return replace(training, rows=rows, dev=dev, hashes={**training.hashes, "rows": digest([*rows, *dev])})


def train(training: Training, progress: Callable[[Progress], None] = lambda _: None) -> Trained:
    """Train the model in place from the newest checkpoint of the run (or from the start) to the end of the plan.
    ``progress`` is called after each step.

    Raises TRAIN_NOT_FINITE (nothing of that step is kept), TRAIN_INTERRUPTED after saving, RUN_DISK, RESUME_MISMATCH.
    """
    plan, run, hashes = training.plan, training.run, training.hashes
    student = learner(training.model, plan)
    state = checkpoints.restore(run.checkpoints, student.parameters, student.optimizer, hashes)
    state = state or checkpoints.State(0, hashes)
    checkpoints.tidy(run.checkpoints, plan.checkpoint_keep)
    _drop_later_lines(run, state.step)
    started = time.monotonic()
    if state.step == 0 and training.dev:
        first = dev_loss(training.model, training.dev, plan)
        append_line(run.metrics, {"step": 0, "dev_loss": first})
        state = _with_best(run, student, checkpoints.State(0, hashes, first, 0))
    with _interrupts() as interrupted:
        while state.step < plan.steps and not _out_of_patience(state, plan):
            state = _one_step(training, student, state, progress)
            over = state.step == plan.steps or _out_of_patience(state, plan)
            if over or interrupted.is_set() or state.step % plan.checkpoint_every == 0:
                checkpoints.save(run.checkpoints, student.parameters, student.optimizer, state, plan.checkpoint_keep)
            if interrupted.is_set() and not over:
                raise TrainError(
                    "TRAIN_INTERRUPTED",
                    f"stopped after step {state.step} of {plan.steps}; progress is saved.",
                    where=str(run.path),
                    fix=f"`tunewright run {run.path}` continues from there.",
                )
    if state.best_step is not None:
        checkpoints.load_weights(checkpoints.best_file(run.checkpoints, state.best_step), student.parameters)
    lines = list(read_lines(run.metrics))
    return Trained(
        steps=state.step,
        stopped_early=state.step < plan.steps,
        best_step=state.best_step,
        best_dev_loss=state.best,
        first_dev_loss=next((line["dev_loss"] for line in lines if line["step"] == 0), None),
        seconds=round(time.monotonic() - started, 1),
        tokens=sum(line["tokens"] for line in lines if "loss" in line),
    )


def _one_step(
    training: Training, student: Learner, state: checkpoints.State, progress: Callable[[Progress], None]
) -> checkpoints.State:
    """Take the next step, measure the dev loss where it is due, and log both."""
    plan, run = training.plan, training.run
    start = time.monotonic()
    done = take_step(student, training.rows, plan, state.step)
    line = _line(done, plan, state.step, round(time.monotonic() - start, 4))
    dev = None
    if training.dev and (line["step"] % plan.eval_every == 0 or line["step"] == plan.steps):
        line["dev_loss"] = dev = dev_loss(training.model, training.dev, plan)
    state = _advanced(state, dev)
    if state.best_step == state.step:
        state = _with_best(run, student, state)
    append_line(run.metrics, line)
    progress(Progress(state.step, plan.steps, done.loss, dev, line["lr"], done.tokens, line["seconds"]))
    return state


def _line(done: Step, plan: Plan, step: int, seconds: float) -> dict[str, Any]:
    """A line of metrics.jsonl; steps are counted from 1 there."""
    line = {
        "step": step + 1,
        "loss": done.loss,
        "lr": learning_rate(plan, step),
        "grad_norm": done.norm,
        "tokens": done.tokens,
        "computed": done.computed,
        "supervised": done.supervised,
        "seconds": seconds,
    }
    return {**line, "metrics": done.metrics} if done.metrics else line


def _with_best(run: Run, student: Learner, state: checkpoints.State) -> checkpoints.State:
    """The state, after writing its weights as the best so far."""
    file = checkpoints.best_file(run.checkpoints, state.step)
    return replace(state, best_sha256=checkpoints.save_weights(file, student.parameters))


def _out_of_patience(state: checkpoints.State, plan: Plan) -> bool:
    return plan.patience > 0 and state.waited >= plan.patience


def _advanced(state: checkpoints.State, dev: float | None) -> checkpoints.State:
    """The state one step later, given the dev loss if it was measured."""
    step = state.step + 1
    if dev is None:
        return replace(state, step=step)
    if state.best is None or dev < state.best:
        return replace(state, step=step, best=dev, best_step=step, waited=0)
    return replace(state, step=step, waited=state.waited + 1)


def _drop_later_lines(run: Run, step: int) -> None:
    """Remove the lines of steps after the checkpoint, which would be logged twice."""
    lines = list(read_lines(run.metrics))
    kept = [line for line in lines if line["step"] <= step] if step else []
    if len(kept) < len(lines):
        write_lines(run.metrics, kept)


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C (or SIGTERM) sets; the second ends the process as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(number: int, _: Any) -> None:
        if event.is_set():
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)
        event.set()

    before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
