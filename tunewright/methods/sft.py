"""Supervised fine-tuning: the negative log-likelihood of the answers (of every token, for raw text)."""

from __future__ import annotations

from collections.abc import Sequence

from tunewright.core.config import Plan
from tunewright.data.messages import Example
from tunewright.methods.method import Loss
from tunewright.model import forward
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.packing import Batch, microbatches, to_batch, units_of
from tunewright.tokens.rendering import for_training
from tunewright.tokens.sequences import TrainRow, flat, single
from tunewright.tokens.template import Template


def prepare(template: Template, example: Example, row: int, max_length: int | None) -> list[TrainRow]:
    """One training row for each sequence: turns that need a sequence of their own are sampled separately."""
    return [single(s) for s in for_training(template, example, row, max_length)]


def annotate(model: LanguageModel, rows: Sequence[TrainRow], plan: Plan) -> list[TrainRow]:
    return list(rows)


def batches(
    model: LanguageModel, rows: Sequence[TrainRow], chosen: Sequence[int], plan: Plan, step: int
) -> list[Batch]:
    passes = microbatches(units_of(rows, chosen), plan.tokens_per_pass, plan.layout)
    return [to_batch(flat(rows[i] for i in group), plan.layout) for group in passes]


def weight(batch: Batch) -> float:
    """The weights of the supervised tokens, summed."""
    return float(batch.weight_N.sum())


def loss(model: LanguageModel, batch: Batch, plan: Plan) -> Loss:
    return Loss(forward.loss(model, batch, plan.gradient_checkpointing))
