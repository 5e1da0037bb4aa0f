"""Distillation: a teacher's probabilities at every supervised token as targets (Hinton et al. 2015, 1503.02531).

With a teacher in the plan (train.method=distill), they are those of the whole vocabulary (`teaching`). Otherwise a
stage distils from the same model with another prompt: its K most probable tokens are computed once, before training,
and stored with the row as its signal (`with_probabilities`). A row without a signal is a gold row: its teacher is its
own answer, as one-hot probabilities, so that rows can mix in a batch.

Axes: N predicted tokens, M supervised tokens, K most probable tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from tunewright.core.config import Plan
from tunewright.methods import sft, teaching
from tunewright.methods.method import Loss, Progress, as_written, unknown
from tunewright.model import forward, losses
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.packing import Layout, Microbatch, split_into_passes, to_microbatch, units_of
from tunewright.tokens.sequences import Signal, TokenSequence, TrainRow, flat, single

K, SOFT = 32, "soft_MK"

options, initial_loss = as_written, unknown
prepare = sft.prepare  # gold rows


def precompute(model: LanguageModel, rows: Sequence[TrainRow], plan: Plan, progress: Progress) -> list[TrainRow]:
    """What the plan's teacher computes. Without one, nothing: rows already have their signal, which ``model``, the
    student, could not compute."""
    return teaching.with_teacher(model, rows, plan, progress) if plan.teacher is not None else list(rows)


@torch.inference_mode()
def with_probabilities(
    teacher: LanguageModel,
    teacher_rows: Sequence[TokenSequence],
    student_rows: Sequence[TokenSequence],
    layout: Layout,
    weight: float = 1.0,
    progress: Progress = lambda _: None,
) -> list[TrainRow]:
    """``student_rows`` with the teacher's top-K probabilities at the supervised tokens of ``teacher_rows``.

    Corresponding rows supervise the same tokens, possibly after different prompts. ``weight`` multiplies the rows' loss
    weights; ``progress(n)`` is called as rows finish.
    """

    def read(part: Sequence[TrainRow], microbatch: Microbatch) -> Signal:
        prob_NV = forward.logits(teacher, microbatch).float().softmax(-1)
        top = prob_NV.topk(min(K, prob_NV.shape[1]), -1)
        prob_NK = top.values / top.values.sum(1, keepdim=True)
        return {SOFT: top.indices.cpu().numpy(), "prob_MK": prob_NK.cpu().numpy()}

    signals = teaching.at_targets([single(r) for r in teacher_rows], layout, read, progress)
    done = []
    for row, asked, signal in zip(student_rows, teacher_rows, signals, strict=True):
        assert row.supervised == asked.supervised, "teacher and student supervise the same tokens"
        student = replace(row, weights=tuple(w * weight for w in row.weights))
        done.append(TrainRow((student,), row.row, signal))
    return done


def microbatches(
    model: LanguageModel, rows: Sequence[TrainRow], chosen: Sequence[int], plan: Plan, step: int
) -> list[Microbatch]:
    """Microbatches of gold rows, then of rows with a signal. Predictions that `to_microbatch` merges have the same
    teacher: with a signal because they follow the same text, in gold rows because the target is the teacher."""
    parts: list[Microbatch] = []
    for kind in ("", SOFT, teaching.ROWS):
        mine = [i for i in chosen if _kind(rows[i]) == kind]
        assert all(len(rows[i].sequences) == 1 for i in mine), "a row of another method is not an answer to imitate"
        for group in split_into_passes(units_of(rows, mine), plan.tokens_per_pass, plan.layout):
            part = [rows[i] for i in group]
            microbatch = to_microbatch(flat(part), plan.layout)
            parts.append(replace(microbatch, signal=_signal(kind, part, microbatch)))
    return parts


def _kind(row: TrainRow) -> str:
    """The name of the row's signal; empty for a gold row."""
    return next((kind for kind in (SOFT, teaching.ROWS) if kind in row.signal), "")


def _signal(kind: str, rows: Sequence[TrainRow], microbatch: Microbatch) -> Signal:
    if kind == teaching.ROWS:
        return teaching.signal(rows, microbatch)
    return _teacher_signal(rows, microbatch) if kind == SOFT else _gold_signal(microbatch)


def _gold_signal(microbatch: Microbatch) -> Signal:
    shape = len(microbatch.target_N), K
    soft_NK, prob_NK = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    soft_NK[:, 0], prob_NK[:, 0] = microbatch.target_N, 1.0
    return {"soft_NK": soft_NK, "prob_NK": prob_NK}


def _teacher_signal(rows: Sequence[TrainRow], microbatch: Microbatch) -> Signal:
    first_N = np.unique(microbatch.prediction_M, return_index=True)[1]
    soft_MK, prob_MK = (np.concatenate([r.signal[name] for r in rows]) for name in (SOFT, "prob_MK"))
    return {"soft_NK": soft_MK[first_N], "prob_NK": prob_MK[first_N]}


def weight(microbatch: Microbatch) -> float:
    """The weights of the supervised tokens, summed."""
    return float(microbatch.weight_N.sum())


def loss(model: LanguageModel, microbatch: Microbatch, plan: Plan) -> Loss:
    if teaching.PASS in microbatch.signal:
        return teaching.loss(model, microbatch, plan)
    assert plan.teacher is None, "rows of a run with a teacher were read by it"
    soft_NK, prob_NK, weight_N = (
        forward.on_device(model, x)
        for x in (microbatch.signal["soft_NK"], microbatch.signal["prob_NK"], microbatch.weight_N)
    )
    if forward.frozen_head(model):
        logits_NV = forward.hidden(model, microbatch, plan.gradient_checkpointing) @ model.head_VD.T
    else:
        logits_NV = forward.logits(model, microbatch, plan.gradient_checkpointing)
    return Loss(losses.soft_cross_entropy(logits_NV, soft_NK, prob_NK, weight_N))
