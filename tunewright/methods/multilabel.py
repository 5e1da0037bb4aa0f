"""Classification with any number of labels: binary cross-entropy of a linear head's logits at the last token of the
prompt, as it is served, averaged over the labels. Rows are read as in `classify`. Axes: R rows, N prompts, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import torch.nn.functional as F

from tunewright.core.config import Plan
from tunewright.data.task.label_set import joined, parts
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
    def target(answer: str) -> list[float]:
        own = set(parts(answer))
        return [float(label in own) for label in plan.labels]

    return classify.with_targets(rows, chosen, plan, target)


def loss(model: LanguageModel, microbatch: Microbatch, plan: Plan) -> Loss:
    logits_NC = forward.head_logits(model, microbatch, plan.gradient_checkpointing)
    logits_RC = logits_NC[forward.on_device(model, microbatch.prediction_M)]
    target_RC = forward.on_device(model, microbatch.signal["target_R"]).to(logits_RC.dtype)
    correct_R = ((logits_RC.detach() > 0) == (target_RC > 0)).all(1)
    loss_R = F.binary_cross_entropy_with_logits(logits_RC, target_RC, reduction="none").mean(1)
    return Loss(loss_R.sum(), {"accuracy": correct_R.sum()})


def initial_loss(plan: Plan, rows: Sequence[TrainRow]) -> float | None:
    """A head of zeros gives every label an even chance."""
    return log(2)


def answer(plan: Plan, logits_C: Sequence[float]) -> str:
    """The labels that are more probable than not."""
    return joined([label for label, logit in zip(plan.labels, logits_C, strict=True) if logit > 0])
