"""THE loop: fetch, forward, backward, step, log, save. No hook reaches in; who wants to look is told (`watch`) or reads the run folder."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from tunewright.core.config import Plan
from tunewright.core.errors import TrainError
from tunewright.core.run_folder import Run, append_line, read_lines, write_lines
from tunewright.model.adapters import trainable
from tunewright.model.language_model import LanguageModel
from tunewright.tokens import packing
from tunewright.tokens.packing import Batch
from tunewright.tokens.rendering import Rendered
from tunewright.train import checkpoints

FLOOR = 0.02


class Method(Protocol):
    """The part of a module of `methods/` that the loop calls."""

    def batches(self, rendered: Sequence[Rendered], rows: Sequence[int], plan: Plan) -> list[Batch]: ...
    def loss(self, model: LanguageModel, batch: Batch, plan: Plan) -> tuple[torch.Tensor, float]: ...


@dataclass(frozen=True)
class Progress:
    """One finished step, for people who watch. ``loss`` and ``dev_loss`` are nats a supervised token; ``tokens`` are those of
    the rows, of which sharing may have computed fewer."""

    step: int
    steps: int
    loss: float
    dev_loss: float | None
    lr: float
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Trained:
    """How training ended. The weights left in the model are those of ``best_step`` when dev rows were given."""

    steps: int
    stopped_early: bool
    best_step: int | None
    best_dev_loss: float | None
    first_dev_loss: float | None
    seconds: float
    tokens: int


@dataclass(frozen=True)
class Step:
    """``loss`` in nats a supervised token, ``norm`` of the gradient before clipping; ``tokens`` of the rows, of which
    ``computed`` went through the model; ``weight`` of the supervised ones."""

    loss: float
    norm: float
    tokens: int
    computed: int
    weight: float


def learning_rate(plan: Plan, step: int) -> float:
    """Rate of step ``step`` (from 0): linear warm-up, then decay to ``FLOOR`` of the peak at the last step."""
    if step < plan.warmup_steps:
        return plan.lr * (step + 1) / plan.warmup_steps
    if plan.schedule == "constant":
        return plan.lr
    done = (step - plan.warmup_steps) / max(1, plan.steps - 1 - plan.warmup_steps)
    shape = 1 - done if plan.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return plan.lr * (FLOOR + (1 - FLOOR) * shape)


def train(
    model: LanguageModel,
    method: Method,
    rows: Sequence[Rendered],
    dev: Sequence[Rendered],
    plan: Plan,
    run: Run,
    hashes: dict[str, str],
    watch: Callable[[Progress], None] = lambda _: None,
) -> Trained:
    """Train ``model`` in place from the newest checkpoint of ``run`` (or from the start) to the end of the plan.

    Raises TRAIN_NOT_FINITE (nothing of that step is kept), TRAIN_INTERRUPTED after saving, RUN_DISK, RESUME_MISMATCH.
    """
    parameters = trainable(model.module)
    optimizer = make_optimizer(parameters, plan)
    state = checkpoints.restore(run.checkpoints, parameters, optimizer, hashes) or checkpoints.State(0, hashes)
    checkpoints.tidy(run.checkpoints, plan.checkpoint_keep)
    _forget_later_lines(run, state.step)
    begun = time.monotonic()
    if state.step == 0 and dev:
        first = dev_loss(model, method, dev, plan)
        append_line(run.metrics, {"step": 0, "dev_loss": first})
        state = _kept(run, parameters, checkpoints.State(0, hashes, first, 0))
    with _interrupts() as interrupted:
        while state.step < plan.steps and not _waited_enough(state, plan):
            line = _logged_step(model, method, rows, plan, state.step, optimizer, parameters)
            now = None
            if dev and (line["step"] % plan.eval_every == 0 or line["step"] == plan.steps):
                line["dev_loss"] = now = dev_loss(model, method, dev, plan)
            state = _after(state, now)
            if state.best_step == state.step:
                state = _kept(run, parameters, state)
            append_line(run.metrics, line)
            watch(Progress(state.step, plan.steps, line["loss"], now, line["lr"], line["tokens"], line["seconds"]))
            over = state.step == plan.steps or _waited_enough(state, plan)
            if over or interrupted.is_set() or state.step % plan.checkpoint_every == 0:
                checkpoints.save(run.checkpoints, parameters, optimizer, state, plan.checkpoint_keep)
            if interrupted.is_set() and not over:
                raise TrainError(
                    "TRAIN_INTERRUPTED",
                    f"stopped after step {state.step} of {plan.steps}; everything is saved.",
                    where=str(run.path),
                    fix=f"`tunewright run {run.path}` goes on from there.",
                )
    if state.best_step is not None:
        checkpoints.load_weights(checkpoints.best_file(run.checkpoints, state.best_step), parameters)
    lines = list(read_lines(run.metrics))
    return Trained(
        steps=state.step,
        stopped_early=state.step < plan.steps,
        best_step=state.best_step,
        best_dev_loss=state.best,
        first_dev_loss=next((line["dev_loss"] for line in lines if line["step"] == 0), None),
        seconds=round(time.monotonic() - begun, 1),
        tokens=sum(line["tokens"] for line in lines if "loss" in line),
    )


def _kept(run: Run, parameters: dict[str, torch.nn.Parameter], state: checkpoints.State) -> checkpoints.State:
    """The state, its weights being the best so far and written as such."""
    file = checkpoints.best_file(run.checkpoints, state.step)
    return replace(state, best_sha256=checkpoints.save_weights(file, parameters))


def _waited_enough(state: checkpoints.State, plan: Plan) -> bool:
    return plan.patience > 0 and state.waited >= plan.patience


def _after(state: checkpoints.State, dev: float | None) -> checkpoints.State:
    """The state one step later, given the dev loss if it was measured."""
    step = state.step + 1
    if dev is None:
        return replace(state, step=step)
    if state.best is None or dev < state.best:
        return replace(state, step=step, best=dev, best_step=step, waited=0)
    return replace(state, step=step, waited=state.waited + 1)


def _logged_step(
    model: LanguageModel,
    method: Method,
    rows: Sequence[Rendered],
    plan: Plan,
    step: int,
    optimizer: torch.optim.Optimizer,
    parameters: dict[str, torch.nn.Parameter],
) -> dict[str, Any]:
    """One step and its line of metrics.jsonl; steps are counted from 1 there."""
    start = time.monotonic()
    done = take_step(model, method, rows, plan, step, optimizer, parameters)
    return {
        "step": step + 1,
        "loss": done.loss,
        "lr": learning_rate(plan, step),
        "grad_norm": done.norm,
        "tokens": done.tokens,
        "computed": done.computed,
        "supervised": done.weight,
        "seconds": round(time.monotonic() - start, 4),
    }


def calibrate(
    model: LanguageModel, method: Method, rows: Sequence[Rendered], plan: Plan, seconds: float = 4.0
) -> tuple[float, int]:
    """(tokens a second, passes measured) of forward and backward on real rows, after one pass to warm up. Leaves no gradient."""
    first, second = (method.batches(rows, packing.step_rows(len(rows), plan.batch_size, plan.seed, s), plan) for s in (0, 1))
    model.module.train()
    tokens, spent, count = 0, 0.0, 0
    for i, batch in enumerate([first[0], *first[1:], *second]):
        start = time.monotonic()
        total, _ = method.loss(model, batch, plan)
        total.backward()  # type: ignore[no-untyped-call]
        model.module.zero_grad(set_to_none=True)
        if i:
            tokens, spent, count = tokens + batch.tokens, spent + time.monotonic() - start, count + 1
        if spent > seconds:
            break
    model.module.eval()
    return tokens / max(spent, 1e-9), count


def make_optimizer(parameters: dict[str, torch.nn.Parameter], plan: Plan) -> torch.optim.AdamW:
    """AdamW (betas 0.9, 0.999; eps 1e-8); decay on matrices only, never on norms, biases or magnitudes."""
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    others = [p for p in parameters.values() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=plan.lr, betas=(0.9, 0.999), eps=1e-8)


def take_step(
    model: LanguageModel,
    method: Method,
    rows: Sequence[Rendered],
    plan: Plan,
    step: int,
    optimizer: torch.optim.Optimizer,
    parameters: dict[str, torch.nn.Parameter],
) -> Step:
    """One global step."""
    torch.manual_seed(plan.seed * 1_000_003 + step)  # dropout is a function of (seed, step), so a resumed run draws the same
    chosen = packing.step_rows(len(rows), plan.batch_size, plan.seed, step)
    parts = method.batches(rows, chosen, plan)
    # Sum over all forward passes, divide once: a mean of means would weigh short passes more (transformers PR 34191).
    weight = float(sum(b.weight_N.sum() for b in parts))
    optimizer.zero_grad(set_to_none=True)
    model.module.train()
    total = 0.0
    for batch in parts:
        loss_sum, _ = method.loss(model, batch, plan)
        (loss_sum / weight).backward()  # type: ignore[no-untyped-call]
        total += float(loss_sum.detach())
    model.module.eval()
    norm = float(torch.nn.utils.clip_grad_norm_(parameters.values(), plan.max_grad_norm))
    loss = total / weight
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise TrainError(
            "TRAIN_NOT_FINITE",
            f"step {step + 1}: loss {loss}, gradient norm {norm}; the step was not taken.",
            fix="lower train.lr, or set train.dtype=float32; earlier checkpoints are sound.",
        )
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(plan, step)
    optimizer.step()
    return Step(loss, norm, sum(b.tokens for b in parts), sum(b.ids_BT.size for b in parts), weight)


@torch.no_grad()
def dev_loss(model: LanguageModel, method: Method, dev: Sequence[Rendered], plan: Plan) -> float:
    """Nats a supervised token over all dev rows, dropout off."""
    was = model.module.training
    model.module.eval()
    total, weight = 0.0, 0.0
    for batch in method.batches(dev, range(len(dev)), plan):
        loss_sum, part = method.loss(model, batch, plan)
        total, weight = total + float(loss_sum), weight + part
    model.module.train(was)
    return total / weight


def _forget_later_lines(run: Run, step: int) -> None:
    """Lines of steps after the checkpoint would be logged twice."""
    lines = list(read_lines(run.metrics))
    kept = [line for line in lines if line["step"] <= step] if step else []
    if len(kept) < len(lines):
        write_lines(run.metrics, kept)


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """The first Ctrl-C (or SIGTERM) sets the event, the second ends the process as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def note(number: int, _: Any) -> None:
        if event.is_set():
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)
        event.set()

    before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
