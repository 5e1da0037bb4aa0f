"""Supervised fine-tuning: the negative log-likelihood of the answers (of every token, for raw text)."""

from __future__ import annotations

from collections.abc import Sequence

from tunewright.core.config import Plan
from tunewright.data.messages import Example
from tunewright.methods.method import Loss, as_prepared, as_written, unknown
from tunewright.model import forward
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.packing import Microbatch, split_into_passes, to_microbatch, units_of
from tunewright.tokens.rendering import for_training
from tunewright.tokens.sequences import TrainRow, flat, single
from tunewright.tokens.template import Template

options, precompute, initial_loss = as_written, as_prepared, unknown


def prepare(template: Template, example: Example, row: int, max_length: int | None) -> list[TrainRow]:
    """One training row for each sequence: turns that need a sequence of their own are sampled separately."""
    return [single(s) for s in for_training(template, example, row, max_length)]


def microbatches(
    model: LanguageModel, rows: Sequence[TrainRow], chosen: Sequence[int], plan: Plan, step: int
) -> list[Microbatch]:
    passes = split_into_passes(units_of(rows, chosen), plan.tokens_per_pass, plan.layout)
    return [to_microbatch(flat(rows[i] for i in group), plan.layout) for group in passes]


def weight(microbatch: Microbatch) -> float:
    """The weights of the supervised tokens, summed."""
    return float(microbatch.weight_N.sum())


def loss(model: LanguageModel, microbatch: Microbatch, plan: Plan) -> Loss:
    return Loss(forward.loss(model, microbatch, plan.gradient_checkpointing))
