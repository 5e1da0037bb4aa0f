"""A toy pairwise preference method, to show that a method is one module.

The loss of a pair is -log sigmoid(beta * (r(chosen) - r(rejected))), where r is the sequence's log-probability minus
that under the reference, the model with an untrained adapter (Rafailov et al. 2023, 2305.18290). Axes: M supervised
tokens, S sequences, P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from tunewright.core.config import MethodOptions, Plan
from tunewright.data.messages import Chat, Example, Message
from tunewright.methods.method import Loss, Progress
from tunewright.model import forward
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.packing import Microbatch, split_into_passes, to_microbatch, units_of
from tunewright.tokens.rendering import for_training
from tunewright.tokens.sequences import TrainRow, flat
from tunewright.tokens.template import Template

BETA = 0.5


def options(options: MethodOptions) -> MethodOptions:
    return options


def initial_loss(plan: Plan, rows: Sequence[TrainRow]) -> float | None:
    return math.log(2)


def prepare(template: Template, example: Example, row: int, max_length: int | None) -> list[TrainRow]:
    """The answer is preferred to its reverse."""
    assert isinstance(example, Chat)
    worse = replace(example, messages=(*example.messages[:-1], Message("assistant", example.target[::-1])))
    sides = (for_training(template, side, row, max_length)[0] for side in (example, worse))
    return [TrainRow(tuple(sides), row)]


@torch.no_grad()
def precompute(model: LanguageModel, rows: Sequence[TrainRow], plan: Plan, progress: Progress) -> list[TrainRow]:
    """Add to each pair the reference's log-probabilities of its two sequences."""
    actual = []
    for row in rows:
        logp_S = forward.sequence_logp(model, to_microbatch(row.sequences, plan.layout))
        actual.append(replace(row, signal={"reference_S": logp_S.double().cpu().numpy()}))
    return actual


def microbatches(
    model: LanguageModel, rows: Sequence[TrainRow], chosen: Sequence[int], plan: Plan, step: int
) -> list[Microbatch]:
    made = []
    for group in split_into_passes(units_of(rows, chosen), plan.tokens_per_pass, plan.layout):
        signal = {"reference_S": np.concatenate([rows[i].signal["reference_S"] for i in group])}
        made.append(to_microbatch(flat(rows[i] for i in group), plan.layout, signal=signal))
    return made


def weight(microbatch: Microbatch) -> float:
    """The number of pairs."""
    return len(microbatch.signal["reference_S"]) / 2


def loss(model: LanguageModel, microbatch: Microbatch, plan: Plan) -> Loss:
    ratio_S = forward.sequence_logp(model, microbatch, plan.gradient_checkpointing) - torch.from_numpy(
        microbatch.signal["reference_S"]
    ).to(model.device)
    margin_P = BETA * (ratio_S[0::2] - ratio_S[1::2])
    metrics = {"margin": margin_P.detach().sum(), "accuracy": (margin_P.detach() > 0).sum()}
    return Loss(-F.logsigmoid(margin_P).sum(), metrics)
