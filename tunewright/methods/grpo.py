"""Learning from rewards: samples of one prompt are compared with one another, and the better ones become more probable
(GRPO, Shao et al. 2024, 2402.03300, and its relatives in `policy_losses`).

The samples of a step are drawn and graded between steps, by `train.rollouts`, which hands them over as training rows:
so this module, like every method, reads no files and asks no grader. Each is trained on once, by the model that drew
it, so the ratio to the model that drew it is 1. Axes: S samples, M tokens of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tunewright.core.config import MethodOptions, Plan
from tunewright.core.errors import data_error
from tunewright.data.messages import Chat, Example
from tunewright.methods.method import Loss, Progress
from tunewright.methods.policy_losses import LOSSES, Samples
from tunewright.model import forward
from tunewright.model.language_model import LanguageModel
from tunewright.tokens import rendering
from tunewright.tokens.packing import Microbatch, singles, split_into_passes, to_microbatch
from tunewright.tokens.sequences import TokenSequence, TrainRow, prompt_then_answer
from tunewright.tokens.template import Template

STATISTICS = ("reward", "reward_std", "flat_groups", "length", "cut", "mismatch")


def options(options: MethodOptions) -> MethodOptions:
    """As they are."""
    return options


def prepare(template: Template, example: Example, row: int, max_length: int | None) -> list[TrainRow]:
    """The prompt, followed by the empty answer: what there is before samples are drawn. Raises DATA_FORM_UNSUPPORTED
    for a row with an answer."""
    if not isinstance(example, Chat) or example.item is None:
        fix = "leave data.format at auto, or set it to prompt."
        raise data_error("DATA_FORM_UNSUPPORTED", "grpo needs rows of prompts.", where=example.where, fix=fix)
    prompt = rendering.for_generation(template, example.prompt)
    return [TrainRow((prompt_then_answer(prompt, (template.eos,), row),), row)]


def precompute(model: LanguageModel, rows: Sequence[TrainRow], plan: Plan, progress: Progress) -> list[TrainRow]:
    """Nothing."""
    return list(rows)


def microbatches(
    model: LanguageModel, rows: Sequence[TrainRow], chosen: Sequence[int], plan: Plan, step: int
) -> list[Microbatch]:
    """Samples of advantage 0 change nothing, and are not computed; they count in the divisor. Rows without samples (in
    the self-test, in measurements of speed) have advantage 1."""
    weigh, longest = LOSSES[plan.options.loss_type].weight, plan.max_new_tokens
    every: list[tuple[TokenSequence, float]] = []
    for i in chosen:
        advantage_S = rows[i].signal.get("advantage_S", np.ones(len(rows[i].sequences)))
        every += zip(rows[i].sequences, map(float, advantage_S), strict=True)
    total = sum(weigh(s.supervised, longest) for s, _ in every)
    computed = [pair for pair in every if pair[1]] or every[:1]
    left_out = total - sum(weigh(s.supervised, longest) for s, _ in computed)
    made = []
    for n, group in enumerate(
        split_into_passes(singles([s.ids for s, _ in computed]), plan.tokens_per_pass, plan.layout)
    ):
        part = [computed[i] for i in group]
        signal = {
            "advantage_S": np.array([advantage for _, advantage in part]),
            "tokens_S": np.array([s.supervised for s, _ in part]),
            "weight_1": np.array([sum(weigh(s.supervised, longest) for s, _ in part) + (left_out if n == 0 else 0.0)]),
            # As if it were a sum over weights, because it is divided by their total.
            "statistics": total * statistics(rows, chosen) if n == 0 else np.zeros(len(STATISTICS)),
        }
        made.append(to_microbatch([s for s, _ in part], plan.layout, signal=signal))
    return made


def statistics(rows: Sequence[TrainRow], chosen: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The `STATISTICS` of a step, means over prompts; 0 for rows without samples."""
    held = [rows[i].signal["statistics"] for i in chosen if "statistics" in rows[i].signal]
    return np.array(held, np.float64).mean(axis=0) if held else np.zeros(len(STATISTICS))


def weight(microbatch: Microbatch) -> float:
    """Samples, their tokens, or the tokens that they might have, as the loss has it."""
    return float(microbatch.signal["weight_1"][0])


def loss(model: LanguageModel, microbatch: Microbatch, plan: Plan) -> Loss:
    logp_M = forward.logp(model, microbatch, plan.gradient_checkpointing, plan.options.temperature)
    advantage_S = forward.on_device(model, microbatch.signal["advantage_S"]).to(logp_M.dtype)
    tokens = tuple(int(n) for n in microbatch.signal["tokens_S"])
    loss_S = LOSSES[plan.options.loss_type].function(Samples(logp_M, logp_M.detach(), tokens, advantage_S))
    values = torch.from_numpy(np.ascontiguousarray(microbatch.signal["statistics"])).to(logp_M.device)
    return Loss(loss_S.sum(), dict(zip(STATISTICS, values, strict=True)))


def initial_loss(plan: Plan, rows: Sequence[TrainRow]) -> float | None:
    """Unknown: the loss is not what is minimised, but has its gradient."""
    return None
