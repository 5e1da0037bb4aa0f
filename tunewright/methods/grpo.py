"""Learning from rewards: samples of one prompt are compared with one another, and the better ones become more probable
(GRPO, Shao et al. 2024, 2402.03300, and its relatives in `policy_losses`).

The samples of a step are drawn and graded between steps, by `sampling.rollouts`, which hands them over as training
rows: so this module, like every method, reads no files and asks no grader. With one update for a rollout, the model
that is trained is the one that drew them, and ratios are 1; with more, the log-probabilities of the first are in the
rows, as are those of the reference. Axes: S samples, M tokens of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tunewright.core.config import Plan
from tunewright.core.errors import data_error
from tunewright.data.messages import Chat, Example
from tunewright.methods.method import Loss, as_prepared, as_written
from tunewright.methods.policy_losses import LOSSES, Samples, k3
from tunewright.model import forward
from tunewright.model.language_model import LanguageModel
from tunewright.tokens import rendering
from tunewright.tokens.packing import Microbatch, singles, split_into_passes, to_microbatch
from tunewright.tokens.sequences import TokenSequence, TrainRow, prompt_then_answer
from tunewright.tokens.template import Template

# Signals of a row, of the tokens of its samples: log-probabilities by the model that drew them and by the reference,
# and the weights of those that another program drew.
OF_TOKENS = ("old_M", "reference_M", "weight_M")
STATISTICS = ("reward", "reward_std", "flat_groups", "length", "cut", "mismatch")

options, precompute = as_written, as_prepared


def prepare(template: Template, example: Example, row: int, max_length: int | None) -> list[TrainRow]:
    """The prompt, followed by the empty answer: what there is before samples are drawn. Raises DATA_FORM_UNSUPPORTED
    for a row with an answer."""
    if not isinstance(example, Chat) or example.item is None:
        fix = "leave data.format at auto, or set it to prompt."
        raise data_error("DATA_FORM_UNSUPPORTED", "grpo needs rows of prompts.", where=example.where, fix=fix)
    prompt = rendering.for_generation(template, example.prompt)
    return [TrainRow((prompt_then_answer(prompt, (template.eos,), row),), row)]


def microbatches(
    model: LanguageModel, rows: Sequence[TrainRow], chosen: Sequence[int], plan: Plan, step: int
) -> list[Microbatch]:
    """Samples of advantage 0 change nothing, and are not computed unless the KL counts; they are in the divisor. Rows
    without samples (in the self-test, in measurements of speed) have advantage 1."""
    weigh, longest = LOSSES[plan.options.loss_type].weight, plan.max_new_tokens
    every = [drawn for i in chosen for drawn in _drawn(rows[i])]
    total = sum(weigh(d.sequence.supervised, longest) for d in every)
    computed = [n for n, d in enumerate(every) if d.advantage or plan.options.kl_weight] or [0]
    left_out = total - sum(weigh(every[n].sequence.supervised, longest) for n in computed)
    tokens = sum(every[n].sequence.supervised for n in computed)
    made = []
    units = singles([every[n].sequence.ids for n in computed])
    for number, group in enumerate(split_into_passes(units, plan.tokens_per_pass, plan.layout)):
        part = [every[computed[i]] for i in group]
        weights = sum(weigh(d.sequence.supervised, longest) for d in part)
        signal = {
            "sample_S": np.array([computed[i] for i in group]),
            "advantage_S": np.array([d.advantage for d in part]),
            "tokens_S": np.array([d.sequence.supervised for d in part]),
            "weight_1": np.array([weights + (left_out if number == 0 else 0.0)]),
            # As if it were a sum over weights, because it is divided by their total; so is that of a mean over tokens.
            "statistics": total * statistics(rows, chosen) if number == 0 else np.zeros(len(STATISTICS)),
            "per_token_1": np.array([total / tokens]),
        }
        for name in OF_TOKENS:
            if all(name in d.of_tokens for d in part):
                signal[name] = np.concatenate([d.of_tokens[name] for d in part])
        made.append(to_microbatch([d.sequence for d in part], plan.layout, signal=signal))
    return made


@dataclass(frozen=True)
class _Drawn:
    """A sample of a row. ``of_tokens``: by the names in `OF_TOKENS`."""

    sequence: TokenSequence
    advantage: float
    of_tokens: Mapping[str, NDArray[np.generic]]


def _drawn(row: TrainRow) -> list[_Drawn]:
    count, ends = len(row.sequences), np.cumsum([s.supervised for s in row.sequences])[:-1]
    advantage_S = row.signal.get("advantage_S", np.ones(count))
    parts = {name: np.split(row.signal[name], ends) for name in OF_TOKENS if name in row.signal}
    each = [{name: own[n] for name, own in parts.items()} for n in range(count)]
    return [_Drawn(s, float(a), own) for s, a, own in zip(row.sequences, advantage_S, each, strict=True)]


def statistics(rows: Sequence[TrainRow], chosen: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The `STATISTICS` of a step, means over prompts; 0 for rows without samples."""
    held = [rows[i].signal["statistics"] for i in chosen if "statistics" in rows[i].signal]
    return np.array(held, np.float64).mean(axis=0) if held else np.zeros(len(STATISTICS))


def weight(microbatch: Microbatch) -> float:
    """Samples, their tokens, or the tokens that they might have, as the loss has it."""
    return float(microbatch.signal["weight_1"][0])


def loss(model: LanguageModel, microbatch: Microbatch, plan: Plan) -> Loss:
    signal, policy = microbatch.signal, LOSSES[plan.options.loss_type]
    logp_M = forward.logp(model, microbatch, plan.gradient_checkpointing, plan.options.temperature)

    def placed(name: str) -> Tensor:
        return forward.on_device(model, signal[name]).to(logp_M.dtype)

    old_M = placed("old_M") if "old_M" in signal else logp_M.detach()
    reference_M, weight_M = (placed(name) if name in signal else None for name in ("reference_M", "weight_M"))
    tokens = tuple(int(n) for n in signal["tokens_S"])
    samples = Samples(logp_M, old_M, tokens, placed("advantage_S"), reference_M, weight_M)
    loss_S = policy.function(samples)
    values = torch.from_numpy(np.ascontiguousarray(signal["statistics"])).to(logp_M.device)
    metrics, per_token = dict(zip(STATISTICS, values, strict=True)), float(signal["per_token_1"][0])
    if reference_M is not None:
        assert policy.penalty is not None, "CONFIG_CONFLICT"
        loss_S = loss_S + plan.options.kl_weight * policy.penalty(samples)
        metrics["kl"] = per_token * k3(samples).detach().sum()
    if "old_M" in signal:
        metrics["clipped"] = per_token * policy.clips(samples).sum()
    return Loss(loss_S.sum(), metrics)


def initial_loss(plan: Plan, rows: Sequence[TrainRow]) -> float | None:
    """Unknown: the loss is not what is minimised, but has its gradient."""
    return None
