"""Which of several processes computes which pass of a step, and how much faster a step is then.

A step's gradient is summed in the order of its passes, whoever computed them, so dealing changes no number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tunewright.core.config import Plan
from tunewright.methods import METHODS
from tunewright.model.language_model import LanguageModel
from tunewright.tokens import packing
from tunewright.tokens.packing import Microbatch
from tunewright.tokens.sequences import TrainRow

SAMPLED = 16  # steps


def costs(microbatches: Sequence[Microbatch]) -> list[int]:
    """Of each pass: its computed tokens."""
    return [microbatch.ids_BT.size for microbatch in microbatches]


def owners(costs: Sequence[int], world: int) -> list[int]:
    """The process that computes each part: the most expensive first, each for the process with least to do (Graham
    1969)."""
    load, owner = [0] * world, [0] * len(costs)
    for part in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        owner[part] = min(range(world), key=lambda rank: (load[rank], rank))
        load[owner[part]] += costs[part]
    return owner


def speedups(model: LanguageModel, rows: Sequence[TrainRow], plan: Plan, worlds: Sequence[int]) -> dict[int, float]:
    """How many times as fast training would be with so many processes, if only computed tokens counted: of steps spread
    over the whole training."""
    whole, slowest = 0, Counter[int]()
    for step in range(0, plan.steps, max(1, plan.steps // SAMPLED)):
        chosen = packing.step_rows(len(rows), plan.batch_size, plan.seed, step)
        each = costs(METHODS[plan.method].microbatches(model, rows, chosen, plan, step))
        whole += sum(each)
        for world in worlds:
            load = Counter[int]()
            for cost, owner in zip(each, owners(each, world), strict=True):
                load[owner] += cost
            slowest[world] += max(load.values())
    return {world: round(whole / slowest[world], 2) for world in worlds}
