"""KTO: learning from answers that are desirable or undesirable, each by itself (Ethayarajh et al. 2024, 2402.01306).

With r the log of an answer's probability over that under the reference, the model before training, the loss of a row is
``weight * (1 - sigmoid(beta * (r - z0)))`` if its answer is desirable, ``weight * (1 - sigmoid(beta * (z0 - r)))`` if
not. z0 estimates how far the policy has moved from the reference: the mean of r over the rows of a step, each with the
answer of another row, and at least 0. It is a constant: no gradient passes through it.

A step must know z0 before its first gradient. So `microbatches` computes it, for the whole step, in passes without
gradients: one with the adapter, and one without it, which is the model before training. That is about half of a
step's time. To compute the reference of these answers before the loop would be as much work: every epoch has others.

Axes: S sequences, one for each row.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tunewright.core.config import MethodOptions, Plan
from tunewright.core.errors import data_error
from tunewright.data.messages import Chat, Example
from tunewright.methods import preference
from tunewright.methods.method import Loss, Progress
from tunewright.model import adapters, forward
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.packing import Microbatch, singles, split_into_passes, to_microbatch, units_of
from tunewright.tokens.rendering import for_training
from tunewright.tokens.sequences import TokenSequence, TrainRow, flat, single
from tunewright.tokens.template import Template

BETA = 0.1  # of train.beta=auto: the value of most experiments of the paper
PromptOf = Callable[[int], Hashable]  # of a row, by its place
PARTNERS = 1 << 32  # keeps the random numbers of `partners` apart from those of `packing.epoch_order`


@dataclass(frozen=True)
class Options:
    """``beta``: how sharply the loss distinguishes rewards; ``desirable``, ``undesirable``: weights of the rows."""

    beta: float
    desirable: float
    undesirable: float


def options(options: MethodOptions) -> MethodOptions:
    """The weights are resolved by the plan, which has the counts of rows."""
    return options.model_copy(update={"beta": BETA}) if options.beta == "auto" else options


def prepare(template: Template, example: Example, row: int, max_length: int | None) -> list[TrainRow]:
    """The answer with its rating; of a pair, the chosen and the rejected answer as two rows."""
    if isinstance(example, Chat) and example.rejected is not None:
        (pair,) = preference.prepare(template, example, row, max_length)
        return [_rated(s, desirable) for s, desirable in zip(pair.sequences, (True, False), strict=True)]
    if not isinstance(example, Chat) or example.desirable is None:
        message = "the row does not say whether its answer is desirable, which this training method needs."
        fix = "use rows with a rating, or with two answers (docs/guide-data.md), or train.method=sft."
        raise data_error("DATA_FIELD_MISSING", message, where=example.where, fix=fix)
    return [_rated(for_training(template, example, row, max_length)[-1], example.desirable)]


def _rated(sequence: TokenSequence, desirable: bool) -> TrainRow:
    return replace(single(sequence), signal={"desirable_S": np.array([desirable])})


def is_desirable(row: TrainRow) -> bool:
    """Whether the row's answer is one to learn; so is that of every row without a rating."""
    return bool(row.signal["desirable_S"][0]) if "desirable_S" in row.signal else True


def precompute(model: LanguageModel, rows: Sequence[TrainRow], plan: Plan, progress: Progress) -> list[TrainRow]:
    """The reference's log-probability of each answer."""
    return preference.with_reference(model, rows, plan, progress)


def partners(prompt_of: PromptOf, rows: int, chosen: Sequence[int], seed: int, step: int) -> list[int | None]:
    """For each of the ``chosen`` rows, a row with another prompt, whose answer it is given to estimate z0. A function
    of the arguments alone. ``rows``: how many there are.

    Of the chosen rows, each is given away once, as the answers that z0 is estimated from should be those of the step.
    Where that is impossible, because over half of them have the same prompt, they are drawn from all rows; None if all
    have the same prompt.
    """
    draw = np.random.Generator(np.random.Philox(key=[seed, PARTNERS + step]))
    of_prompt: dict[Hashable, list[int]] = {}
    for place in draw.permutation(len(chosen)):
        of_prompt.setdefault(prompt_of(chosen[place]), []).append(int(place))
    largest = max(map(len, of_prompt.values()))
    if 2 * largest > len(chosen):
        others = itertools.cycle(draw.permutation(rows).tolist())
        own = {i: prompt_of(i) for i in chosen}
        return [next((j for j in itertools.islice(others, rows) if prompt_of(j) != own[i]), None) for i in chosen]
    # Rows of one prompt follow each other, and each is given the answer of the one ``largest`` places further on.
    places = [place for same in of_prompt.values() for place in same]
    given: list[int | None] = [None] * len(chosen)
    for n, place in enumerate(places):
        given[place] = chosen[places[(n + largest) % len(places)]]
    return given


def mismatched(rows: Sequence[TrainRow], chosen: Sequence[int], plan: Plan, step: int) -> list[TokenSequence]:
    """The prompts of the chosen rows, each with the answer of its partner. One that would be longer than any training
    row may be is left out."""

    def prompt_of(i: int) -> tuple[int, ...]:
        (sequence,) = rows[i].sequences
        return sequence.prompt

    made = []
    for i, j in zip(chosen, partners(prompt_of, len(rows), chosen, plan.seed, step), strict=True):
        if j is None:
            continue
        prompt, other, at = prompt_of(i), rows[j].sequences[0], len(prompt_of(j))
        if len(prompt) + len(other.ids) - at <= plan.max_length:
            weights = (*[0.0] * len(prompt), *other.weights[at:])
            made.append(TokenSequence((*prompt, *other.ids[at:]), weights, rows[i].row))
    return made


@torch.no_grad()
def reference_point(
    model: LanguageModel, rows: Sequence[TrainRow], chosen: Sequence[int], plan: Plan, step: int
) -> float:
    """z0 of the chosen rows; 0 if none can have another answer."""
    sequences = mismatched(rows, chosen, plan, step)
    ratios = np.zeros(len(sequences))
    for group in split_into_passes(singles([s.ids for s in sequences]), plan.tokens_per_pass, plan.layout):
        microbatch = to_microbatch([sequences[i] for i in group], plan.layout)
        policy_S = forward.sequence_logp(model, microbatch)
        with adapters.off(model.module):
            reference_S = forward.sequence_logp(model, microbatch)
        ratios[group] = (policy_S.double() - reference_S.double()).cpu().numpy()
    return max(0.0, float(ratios.mean())) if len(ratios) else 0.0


def microbatches(
    model: LanguageModel, rows: Sequence[TrainRow], chosen: Sequence[int], plan: Plan, step: int
) -> list[Microbatch]:
    """Rows without a reference, which are only divided into passes (`dealing.speedups`), have no z0 either."""
    known = all("reference_S" in rows[i].signal for i in chosen)
    z0 = reference_point(model, rows, chosen, plan, step) if known else 0.0
    counts = Counter(is_desirable(rows[i]) for i in chosen)
    of_step = {"z0": np.array(z0), "counts": np.array([counts[True], counts[False]])}
    made = []
    for group in split_into_passes(units_of(rows, chosen), plan.tokens_per_pass, plan.layout):
        part = [rows[i] for i in group]
        own = {name: np.concatenate([r.signal[name] for r in part]) for name in part[0].signal}
        made.append(to_microbatch(flat(part), plan.layout, signal={**own, **of_step}))
    return made


def weight(microbatch: Microbatch) -> float:
    """The number of rows."""
    return float(len(microbatch.signal["desirable_S"]))


def losses(logratio_S: Tensor, desirable_S: Tensor, z0: Tensor, o: Options) -> Tensor:
    """The loss of each row (Eq. 7 of the paper)."""
    above_S = torch.where(desirable_S, logratio_S - z0, z0 - logratio_S)
    # Two numbers would be rounded to float32, whatever the dtype of the log-ratios.
    high_S, low_S = torch.full_like(logratio_S, o.desirable), torch.full_like(logratio_S, o.undesirable)
    weight_S = torch.where(desirable_S, high_S, low_S)
    return weight_S * torch.sigmoid(-o.beta * above_S)


def loss(model: LanguageModel, microbatch: Microbatch, plan: Plan) -> Loss:
    """Metrics: the mean reward of either kind, in steps that have it, and z0."""
    logp_S = forward.sequence_logp(model, microbatch, plan.gradient_checkpointing)
    reference_S, desirable_S, z0 = (
        forward.on_device(model, microbatch.signal[name]) for name in ("reference_S", "desirable_S", "z0")
    )
    logratio_S, o = logp_S - reference_S.to(logp_S.dtype), _options(plan)
    loss_S = losses(logratio_S, desirable_S, z0.to(logp_S.dtype), o)
    metrics = {"kl": z0 * len(logp_S)}
    counts, reward_S = microbatch.signal["counts"].tolist(), o.beta * logratio_S.detach()
    for name, count, own_S in zip(("desirable", "undesirable"), counts, (desirable_S, ~desirable_S), strict=True):
        if count:  # sums are divided by all rows of the step; a mean over one kind is asked for
            metrics[f"reward_{name}"] = (reward_S * own_S).sum() * (sum(counts) / count)
    return Loss(loss_S.sum(), metrics)


def initial_loss(plan: Plan, rows: Sequence[TrainRow]) -> float | None:
    """Half of the mean weight."""
    o = _options(plan)
    return sum(o.desirable if is_desirable(row) else o.undesirable for row in rows) / (2 * len(rows))


def _options(plan: Plan) -> Options:
    given = plan.options
    assert given.beta != "auto", "`options` has resolved it"
    assert given.desirable_weight != "auto", "the plan has resolved it"
    assert given.undesirable_weight != "auto", "the plan has resolved it"
    return Options(given.beta, given.desirable_weight, given.undesirable_weight)
