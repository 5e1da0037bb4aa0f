"""Learning from preferences: pairs of answers to one prompt, of which one was chosen and the other rejected.

The two answers of a pair are computed in one pass, their prompt once; a pair that does not fit a pass is computed in
two phases (`pairs.two_phase`). The reference is the model before training; its log-probabilities are computed once,
before the first step. Axes: S sequences, two for each pair; P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tunewright.core.config import MethodOptions, Plan
from tunewright.core.errors import data_error
from tunewright.data.messages import Chat, Example
from tunewright.methods import pair_losses
from tunewright.methods.method import Loss, Progress
from tunewright.methods.pair_losses import Answers, PairLoss
from tunewright.methods.pairs import two_phase
from tunewright.model import forward
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.packing import Microbatch, split_into_passes, to_microbatch, units_of
from tunewright.tokens.rendering import for_training
from tunewright.tokens.sequences import Signal, TrainRow, flat
from tunewright.tokens.template import Template

# Not the plan's tokens_per_pass: the division into passes affects the rounding of the stored numbers, which must not
# depend on the memory that happens to be free.
REFERENCE_TOKENS_PER_PASS = 1024


def prepare(template: Template, example: Example, row: int, max_length: int | None) -> list[TrainRow]:
    """The chosen and the rejected answer, after the same prompt, as one row."""
    if not isinstance(example, Chat) or example.rejected is None:
        message = "the row has no rejected answer, which this training method needs beside the chosen one."
        fix = "use rows with both (docs/guide-data.md), or train.method=sft."
        raise data_error("DATA_FIELD_MISSING", message, where=example.where, fix=fix)
    sides = example, replace(example, messages=(*example.messages[:-1], example.rejected))
    pair = tuple(for_training(template, side, row, max_length)[-1] for side in sides)
    chosen, rejected = ((s.prompt, s.ids[len(s.prompt) :]) for s in pair)
    assert chosen[0] == rejected[0], "both answers follow the prompt as it is served"
    if chosen[1] == rejected[1]:
        message, fix = "the chosen and the rejected answer have the same tokens.", "remove the row."
        raise data_error("DATA_PREFERENCE_EQUAL", message, where=example.where, fix=fix)
    return [TrainRow(pair, row)]


def with_reference(model: LanguageModel, rows: Sequence[TrainRow], plan: Plan, progress: Progress) -> list[TrainRow]:
    """The rows with the model's log-probability of each of their sequences."""
    done = list(rows)
    for group in split_into_passes(units_of(rows, range(len(rows))), REFERENCE_TOKENS_PER_PASS, plan.layout):
        sizes = [len(rows[i].sequences) for i in group]
        logp_S = forward.sequence_logp(model, to_microbatch(flat(rows[i] for i in group), plan.layout))
        own = np.split(logp_S.double().cpu().numpy(), np.cumsum(sizes)[:-1])
        for i, reference_S in zip(group, own, strict=True):
            done[i] = replace(rows[i], signal={**rows[i].signal, "reference_S": reference_S})
        progress(len(group))
    return done


@dataclass(frozen=True)
class Preference:
    """The method of one of the `pair_losses`."""

    pair_loss: PairLoss

    def options(self, options: MethodOptions) -> MethodOptions:
        return options.model_copy(update={"beta": self.pair_loss.beta}) if options.beta == "auto" else options

    def prepare(self, template: Template, example: Example, row: int, max_length: int | None) -> list[TrainRow]:
        return prepare(template, example, row, max_length)

    def precompute(
        self, model: LanguageModel, rows: Sequence[TrainRow], plan: Plan, progress: Progress
    ) -> list[TrainRow]:
        """The reference's log-probabilities of both answers."""
        return with_reference(model, rows, plan, progress) if self.pair_loss.reference else list(rows)

    def microbatches(
        self, model: LanguageModel, rows: Sequence[TrainRow], chosen: Sequence[int], plan: Plan, step: int
    ) -> list[Microbatch]:
        def first_phase(alone: Sequence[Microbatch], signal: Signal) -> list[Microbatch]:
            if self.pair_loss.reference and "reference_S" not in signal:
                return list(alone)

            def loss(logp_S: Tensor) -> Loss:
                return self.loss_of(model, logp_S, signal, plan)

            return two_phase.with_slopes(alone, lambda m: forward.sequence_logp(model, m), loss)

        return two_phase.microbatches(rows, chosen, plan, _signal, first_phase)

    def weight(self, microbatch: Microbatch) -> float:
        """The number of pairs; a half for one answer of a pair."""
        return len(microbatch.signal["tokens_S"]) / 2

    def loss(self, model: LanguageModel, microbatch: Microbatch, plan: Plan) -> Loss:
        return two_phase.loss(
            model,
            microbatch,
            lambda: forward.sequence_logp(model, microbatch, plan.gradient_checkpointing),
            lambda logp_S: self.loss_of(model, logp_S, microbatch.signal, plan),
        )

    def loss_of(self, model: LanguageModel, logp_S: Tensor, signal: Signal, plan: Plan) -> Loss:
        """The loss of pairs, given the log-probabilities of their answers."""
        tokens_S = forward.on_device(model, signal["tokens_S"]).to(logp_S.dtype)
        if self.pair_loss.reference:
            reference_S = forward.on_device(model, signal["reference_S"]).to(logp_S.dtype)
        else:
            reference_S = torch.zeros_like(logp_S)
        chosen, rejected = (Answers(logp_S[k::2], reference_S[k::2], tokens_S[k::2]) for k in (0, 1))
        given, beta = plan.options, _beta(plan)
        options = pair_losses.Options(beta, given.label_smoothing, given.gamma_beta_ratio)
        loss_P = self.pair_loss.function(chosen, rejected, options)
        nll_P, weight = -chosen.mean_logp_P, self.pair_loss.nll + given.nll_weight
        total = (loss_P + weight * nll_P if weight else loss_P).sum()
        reward_P, other_P = (self.pair_loss.reward(side, beta).detach() for side in (chosen, rejected))
        metrics = {
            "reward_chosen": reward_P.sum(),
            "reward_rejected": other_P.sum(),
            "accuracy": (reward_P > other_P).sum(),
            "nll": nll_P.detach().sum(),
        }
        return Loss(total, metrics)

    def initial_loss(self, plan: Plan, rows: Sequence[TrainRow]) -> float | None:
        at_reference = self.pair_loss.loss_at_reference
        return at_reference(_beta(plan)) if at_reference else None


def _signal(rows: Sequence[TrainRow]) -> Signal:
    """Of some pairs. Rows that are only divided into passes have no reference (`dealing.speedups`)."""
    signal = {"tokens_S": np.array([s.supervised for s in flat(rows)])}
    if all(r.signal for r in rows):
        signal["reference_S"] = np.concatenate([r.signal["reference_S"] for r in rows])
    return signal


def _beta(plan: Plan) -> float:
    assert plan.options.beta != "auto", "`options` has resolved it"
    return plan.options.beta
