"""Supervised fine-tuning: the negative log-likelihood of what the model should have said (or, for raw text, of everything)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tunewright.core.config import Plan
from tunewright.data.examples import Example
from tunewright.model import forward
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.packing import Batch, microbatches, to_batch
from tunewright.tokens.rendering import Rendered, Template, for_training


def prepare(template: Template, example: Example, row: int, max_length: int | None) -> list[Rendered]:
    return for_training(template, example, row, max_length)


def batches(rendered: Sequence[Rendered], rows: Sequence[int], plan: Plan) -> list[Batch]:
    groups = microbatches(rows, [r.ids for r in rendered], plan.tokens_per_pass, plan.layout)
    return [to_batch([rendered[i] for i in group], plan.layout) for group in groups]


def loss(model: LanguageModel, batch: Batch, plan: Plan) -> tuple[Tensor, float]:
    return forward.loss(model, batch, plan.gradient_checkpointing), float(batch.weight_N.sum())
