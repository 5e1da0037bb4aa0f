"""Distillation from another model: the divergence of the student's next-token distribution from the teacher's, over the
whole vocabulary, at every supervised token (GKD, Agarwal et al. 2023, 2306.13649, on the rows of the data).

The teacher reads the rows once, before the first step. A row keeps its hidden states there, of which the teacher's
output head makes its distribution again, exactly, whenever the row is trained on. Axes: M supervised tokens of all
rows, N predicted tokens, D and E widths of student and teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tunewright.core.config import Plan
from tunewright.methods.method import Loss, Progress
from tunewright.model import forward, loading
from tunewright.model.heads import divergence, teacher
from tunewright.model.heads.divergence import Measure, Taught
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.packing import Layout, Microbatch, split_into_passes, to_microbatch, units_of
from tunewright.tokens.sequences import Signal, TrainRow, flat

ROWS, PASS = "teacher_ME", "teacher_NE"  # the signal of a row, and of a microbatch
# Tokens of a forward pass of the teacher. Not the plan's tokens_per_pass: the division into passes affects the rounding
# of the stored numbers, which must not depend on the memory that happens to be free.
TOKENS_PER_PASS = 1024


def with_teacher(model: LanguageModel, rows: Sequence[TrainRow], plan: Plan, progress: Progress) -> list[TrainRow]:
    """The rows with the hidden states of the plan's teacher, which is loaded for it. ``model``: the student."""
    assert plan.teacher is not None
    reader = teacher.load(plan.teacher, loading.torch_dtype(plan.dtype), model.device)
    return with_hidden(reader, rows, teacher.layout(plan.teacher), progress)


def with_hidden(reader: LanguageModel, rows: Sequence[TrainRow], layout: Layout, progress: Progress) -> list[TrainRow]:
    """The rows with the hidden states of ``reader`` at their supervised tokens, in the dtype that it computes in."""

    def read(part: Sequence[TrainRow], microbatch: Microbatch) -> Signal:
        return {ROWS: _stored(forward.hidden(reader, microbatch))}

    return [replace(row, signal=own) for row, own in zip(rows, at_targets(rows, layout, read, progress), strict=True)]


def at_targets(
    rows: Sequence[TrainRow],
    layout: Layout,
    read: Callable[[Sequence[TrainRow], Microbatch], Signal],
    progress: Progress = lambda _: None,
) -> list[Signal]:
    """For each row, what ``read`` gives at its supervised tokens. ``read``: of the rows of a pass, one entry for each
    prediction, by name."""
    done: dict[int, Signal] = {}
    for group in split_into_passes(units_of(rows, range(len(rows))), TOKENS_PER_PASS, layout):
        part = [rows[i] for i in group]
        microbatch = to_microbatch(flat(part), layout)
        given, cuts = read(part, microbatch), np.cumsum([r.supervised for r in part])[:-1]
        for i, at in zip(group, np.split(microbatch.prediction_M, cuts), strict=True):
            done[i] = {name: of_N[at] for name, of_N in given.items()}
        progress(len(group))
    return [done[i] for i in range(len(rows))]


def signal(rows: Sequence[TrainRow], microbatch: Microbatch) -> Signal:
    """What the teacher computed for each prediction. Those that `to_microbatch` merged follow the same text."""
    first_N = np.unique(microbatch.prediction_M, return_index=True)[1]
    return {PASS: np.concatenate([r.signal[ROWS] for r in rows])[first_N]}


def loss(model: LanguageModel, microbatch: Microbatch, plan: Plan) -> Loss:
    return Loss(divergences(model, microbatch, plan, forward.on_device(model, microbatch.weight_N)).sum())


def divergences(model: LanguageModel, microbatch: Microbatch, plan: Plan, weight_N: Tensor) -> Tensor:
    """weight_n * D_n, in nats, by the plan's measure."""
    assert plan.teacher is not None
    assert model.teacher_VE is not None
    settings, recompute = plan.teacher.settings, plan.gradient_checkpointing
    measure = Measure(settings.divergence, settings.beta, settings.temperature)
    hidden_NE = _restored(forward.on_device(model, microbatch.signal[PASS]))
    taught = Taught(hidden_NE.to(model.teacher_VE.dtype), model.teacher_VE)
    if forward.frozen_head(model):
        hidden_ND = forward.hidden(model, microbatch, recompute)
        return divergence.of_hidden(hidden_ND, model.head_VD, taught, weight_N, measure)
    return divergence.of_logits(forward.logits(model, microbatch, recompute), taught, weight_N, measure)


@torch.no_grad()
def measured(model: LanguageModel, rows: Sequence[TrainRow], plan: Plan) -> NDArray[np.float64]:
    """Mean divergence of each row's supervised tokens, in nats, by the plan's measure."""

    def read(part: Sequence[TrainRow], microbatch: Microbatch) -> Signal:
        microbatch = replace(microbatch, signal=signal(part, microbatch))
        one_N = torch.ones(len(microbatch.target_N), device=model.device)
        return {"nats_M": divergences(model, microbatch, plan, one_N).double().cpu().numpy()}

    return np.array([own["nats_M"].mean() for own in at_targets(rows, plan.layout, read)])


def _stored(hidden_NE: Tensor) -> NDArray[np.generic]:
    """numpy has no bfloat16: its bits, as whole numbers."""
    held = hidden_NE.detach().cpu()
    return (held.view(torch.int16) if held.dtype == torch.bfloat16 else held).numpy()


def _restored(stored_NE: Tensor) -> Tensor:
    return stored_NE.view(torch.bfloat16) if stored_NE.dtype == torch.int16 else stored_NE
