"""Reward models: a linear head gives a conversation a score, trained so that of two answers to one prompt the chosen
one has the higher score (Bradley & Terry 1952; Ouyang et al. 2022, 2203.02155).

The score is read at the last token of the conversation, as the chat template writes it, by its length. Axes: S
sequences, two for each pair; P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from tunewright.core.config import Plan
from tunewright.data.messages import Chat, Example
from tunewright.methods import preference
from tunewright.methods.method import Loss, as_prepared, as_written
from tunewright.methods.pairs import two_phase
from tunewright.model import forward
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.packing import Microbatch
from tunewright.tokens.rendering import for_training
from tunewright.tokens.sequences import Signal, TokenSequence, TrainRow, head_sequence
from tunewright.tokens.template import Template

options, precompute = as_written, as_prepared


def prepare(template: Template, example: Example, row: int, max_length: int | None) -> list[TrainRow]:
    """The conversation with the chosen and with the rejected answer, as one row, after all checks of `preference`."""
    (pair,) = preference.prepare(template, example, row, max_length)
    margin = example.margin if isinstance(example, Chat) and example.margin is not None else 0.0
    sequences = tuple(head_sequence(s.ids, template.eos, row) for s in pair.sequences)
    return [TrainRow(sequences, row, {"margin_S": np.full(len(sequences), margin)})]


def conversation(template: Template, chat: Chat, row: int = 0) -> TokenSequence:
    """A conversation whose last message is scored."""
    return head_sequence(for_training(template, chat, row)[-1].ids, template.eos, row)


def microbatches(
    model: LanguageModel, rows: Sequence[TrainRow], chosen: Sequence[int], plan: Plan, step: int
) -> list[Microbatch]:
    def first_phase(alone: Sequence[Microbatch], signal: Signal) -> list[Microbatch]:
        def loss(score_S: Tensor) -> Loss:
            return _loss_of(model, score_S, signal, plan)

        return two_phase.with_slopes(alone, lambda m: scores(model, m), loss)

    return two_phase.microbatches(rows, chosen, plan, _signal, first_phase)


def _signal(rows: Sequence[TrainRow]) -> Signal:
    return {"margin_S": np.concatenate([r.signal["margin_S"] for r in rows])}


def weight(microbatch: Microbatch) -> float:
    """The number of pairs; a half for one conversation of a pair."""
    return len(microbatch.signal["margin_S"]) / 2


def scores(model: LanguageModel, microbatch: Microbatch, plan: Plan | None = None) -> Tensor:
    """score_S of the conversations."""
    recompute = "none" if plan is None else plan.gradient_checkpointing
    score_N1 = forward.head_logits(model, microbatch, recompute)
    return score_N1[forward.on_device(model, microbatch.prediction_M), 0]


def loss(model: LanguageModel, microbatch: Microbatch, plan: Plan) -> Loss:
    return two_phase.loss(
        model,
        microbatch,
        lambda: scores(model, microbatch, plan),
        lambda score_S: _loss_of(model, score_S, microbatch.signal, plan),
    )


def _loss_of(model: LanguageModel, score_S: Tensor, signal: Signal, plan: Plan) -> Loss:
    """With ``center_rewards_coefficient``, scores are kept near 0, which the comparison alone does not do (Eisenstein
    et al. 2023, 2312.09244)."""
    margin_P = forward.on_device(model, signal["margin_S"]).to(score_S.dtype)[::2]
    chosen_P, rejected_P = score_S[::2], score_S[1::2]
    total = -F.logsigmoid(chosen_P - rejected_P - margin_P).sum()
    if plan.options.center_rewards_coefficient:
        total = total + plan.options.center_rewards_coefficient * (chosen_P + rejected_P).square().sum()
    metrics = {
        "reward_chosen": chosen_P.detach().sum(),
        "reward_rejected": rejected_P.detach().sum(),
        "accuracy": (chosen_P > rejected_P).sum(),
    }
    return Loss(total, metrics)


def initial_loss(plan: Plan, rows: Sequence[TrainRow]) -> float | None:
    """A head of zeros gives all answers one score: log 2, without margins."""
    margins = [float(row.signal["margin_S"][0]) for row in rows]
    return sum(float(np.logaddexp(0.0, m)) for m in margins) / len(margins) if margins else math.log(2)
