"""Regression: squared error of a linear head's output at the last token of the prompt, as it is served; the targets are
standardised by the training rows, as the plan says. Rows are read as in `classify`. Axes: R rows, N different prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

from tunewright.core.config import Plan
from tunewright.methods import classify
from tunewright.methods.method import Loss
from tunewright.model import forward
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.packing import Microbatch
from tunewright.tokens.sequences import TrainRow

# What `classify` does: a row is the prompt, and its answer as UTF-8.
options, prepare, precompute, weight = classify.options, classify.prepare, classify.precompute, classify.weight


def microbatches(
    model: LanguageModel, rows: Sequence[TrainRow], chosen: Sequence[int], plan: Plan, step: int
) -> list[Microbatch]:
    assert plan.standardised is not None
    mean, deviation = plan.standardised
    return classify.with_targets(rows, chosen, plan, lambda answer: (float(answer) - mean) / deviation)


def loss(model: LanguageModel, microbatch: Microbatch, plan: Plan) -> Loss:
    (value_N,) = forward.head_logits(model, microbatch, plan.gradient_checkpointing).T
    value_R = value_N[forward.on_device(model, microbatch.prediction_M)]
    error_R = value_R - forward.on_device(model, microbatch.signal["target_R"]).to(value_R.dtype)
    return Loss(error_R.square().sum(), {"absolute_error": error_R.detach().abs().sum()})


def answer(plan: Plan, logits_C: Sequence[float]) -> str:
    """The number, in the units of the answers."""
    assert plan.standardised is not None
    mean, deviation = plan.standardised
    return f"{mean + deviation * logits_C[0]:.10g}"


def initial_loss(plan: Plan, rows: Sequence[TrainRow]) -> float | None:
    """Unknown for a few rows; 1 over all training rows, where a head of zeros predicts their mean."""
    return None
