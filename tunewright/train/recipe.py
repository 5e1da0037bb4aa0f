"""The recipe of a run where the config leaves it to the plan: batch, steps and learning rate.

Its numbers are from `benchmarks/recipe.py` and `benchmarks/recipe_search.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from tunewright.core.config import (
    DISTILLED,
    EMBEDDING,
    HEADS,
    PAIRED,
    PREFERENCE,
    RANKERS,
    RATED,
    REWARDED,
    Config,
)
from tunewright.core.errors import ConfigError, data_error
from tunewright.core.words import counted
from tunewright.data.metrics import STRUCTURED, Kind
from tunewright.methods import kto
from tunewright.model.facts import Facts
from tunewright.system.machine import Machine
from tunewright.tokens.sequences import TrainRow, flat

CONFIGURED = "as configured"
REWARDED_STEPS = 100  # of samples; tinker-cookbook's recipes of format and length show progress within 20 to 100
# Of the rate of supervised fine-tuning: about the ratio of published rates with LoRA. At an eighth, DPO over-optimised
# examples/preferences: the chosen answers became less likely, and no answer ended. orpo is half fine-tuning itself. Of
# rewards, TRL's rate with LoRA is 1e-5 and tinker-cookbook's are 2e-5 to 1e-4. TRL's for reward models is 1e-4.
RATES = {
    **dict.fromkeys(("sft", *HEADS, *EMBEDDING, *DISTILLED), 1.0),
    **dict.fromkeys((*PREFERENCE, *RATED), 0.05),
    "orpo": 0.5,
    **dict.fromkeys(RANKERS, 0.5),
    **dict.fromkeys(REWARDED, 0.1),
}

T = TypeVar("T")


@dataclass(frozen=True)
class Choice(Generic[T]):
    """A value of the plan, and why it was chosen."""

    value: T
    reason: str


@dataclass(frozen=True)
class RowStats:
    """Counts over the rendered training rows; ``longest`` is the longest sequence, in tokens, and ``longest_row`` the
    longest row, its sequences padded to one length; ``desirable``: the rows that are not rated undesirable."""

    rows: int
    tokens: int
    supervised: int
    longest: int
    desirable: int = 0
    longest_row: int = 0

    @staticmethod
    def of(rows: Sequence[TrainRow]) -> RowStats:
        return RowStats(
            rows=len(rows),
            tokens=sum(r.tokens for r in rows),
            supervised=sum(r.supervised for r in rows),
            longest=max(len(s.ids) for s in flat(rows)),
            desirable=sum(map(kto.is_desirable, rows)),
            longest_row=max(len(r.sequences) * max(len(s.ids) for s in r.sequences) for r in rows),
        )

    def with_samples(self, count: int, answer: int) -> RowStats:
        """Of rows that are trained on with ``count`` samples each, of at most ``answer`` tokens."""
        rows = count * self.rows
        tokens, longest = count * self.tokens + rows * answer, self.longest + answer
        return replace(self, rows=rows, tokens=tokens, supervised=rows * answer, longest=longest)


@dataclass(frozen=True)
class PlanInputs:
    """What a plan is derived from."""

    config: Config
    facts: Facts
    sizes: RowStats
    machine: Machine
    kind: Kind

    @property
    def structured(self) -> bool:
        """Whether answers are structured values, which their prompts mostly decide: they are learned by more and larger
        steps, where free text would overfit (`benchmarks/recipe_search.py`)."""
        return self.kind in STRUCTURED


def batch_size(given: PlanInputs) -> Choice[int]:
    if given.config.train.batch_size != "auto":
        return Choice(given.config.train.batch_size, CONFIGURED)
    rows = given.sizes.rows
    if given.config.train.method in RATED:
        batch = 16 if rows >= 320 else 8
        return Choice(batch, f"{batch} rows a step, over which KTO's reference point z0 is a mean")
    if given.config.train.method in EMBEDDING:
        batch = 64 if rows >= 640 else 32 if rows >= 160 else 16
        return Choice(batch, f"{batch} rows a step: each is compared with the documents of all others")
    if given.structured and rows < 1000:
        return Choice(4, "4 rows a step: structured answers are learned better by more steps")
    batch = 8 if rows >= 160 else 4
    return Choice(batch, f"{batch} rows a step: small batches suit LoRA, and {rows} rows should give many steps")


def steps(given: PlanInputs, per_epoch: int) -> Choice[int]:
    t, rows = given.config.train, given.sizes.rows
    if t.steps != "auto":
        return Choice(t.steps, CONFIGURED)
    if t.epochs != "auto":
        return Choice(max(1, round(t.epochs * per_epoch)), f"{t.epochs:g} epochs of {per_epoch} steps, as configured")
    if t.method in (*PAIRED, *RATED):
        epochs = 2 if rows < 300 else 1
        why = "preferences overfit within an epoch or two (Rafailov et al. 2024, 2406.02900)"
        return Choice(epochs * per_epoch, f"{counted(epochs, 'epoch')} of {per_epoch} steps: {why}")
    if t.method in REWARDED:
        count = max(REWARDED_STEPS * t.num_iterations, per_epoch)
        return Choice(count, f"{counted(count, 'step')}: an epoch, and at least {REWARDED_STEPS} rollouts")
    epochs = 4 if rows < 300 else 3 if rows < 1000 else 2 if rows < 5000 else 1
    return Choice(epochs * per_epoch, f"{epochs} epochs of {per_epoch} steps: fewer epochs for more rows")


def rating_weights(given: PlanInputs) -> Choice[tuple[float, float]]:
    """Of desirable and of undesirable rows. Eq. 8 of KTO (2402.01306) wants the former to weigh 1 to 4/3 times as much
    as the latter, in all; here 1, by raising the weight of the fewer rows. Raises DATA_ONE_SIDED."""
    t, good = given.config.train, given.sizes.desirable
    bad = given.sizes.rows - good
    if not good or not bad:
        message = "the training rows that are short enough are all desirable, or all undesirable."
        raise data_error("DATA_ONE_SIDED", message, where="train.max_length", fix="raise it, or shorten the others.")
    desirable, undesirable = t.desirable_weight, t.undesirable_weight
    if desirable != "auto" and undesirable != "auto":
        return Choice((desirable, undesirable), CONFIGURED)
    if desirable != "auto":
        weights = desirable, desirable * good / bad
    elif undesirable != "auto":
        weights = undesirable * bad / good, undesirable
    else:
        weights = max(1.0, bad / good), max(1.0, good / bad)
    why = f"weights {weights[0]:.3g} and {weights[1]:.3g}: {counted(good, 'desirable row')} and {bad} undesirable weigh"
    return Choice(weights, f"{why} the same in all (Ethayarajh et al. 2024, Eq. 8)")


def learning_rate(given: PlanInputs) -> Choice[float]:
    """Above width 2,000 by Schulman et al. 2025. Their exponent for narrower models, and their factor for short runs,
    overfitted or were unstable in `benchmarks/recipe_search.py`."""
    config, width = given.config, given.facts.hidden
    if config.train.lr != "auto":
        if config.train.lr_multiplier != 1:
            message, fix = "train.lr_multiplier is a factor of the automatic rate.", "set one of the two."
            raise ConfigError(
                "CONFIG_CONFLICT", f"train.lr is set, and {message}", where="train.lr_multiplier", fix=fix
            )
        return Choice(config.train.lr, CONFIGURED)
    power = 0.5 if width <= 2000 else 0.78
    factor, why = (1.4e-3, "; structured answers need higher rates") if given.structured else (4.3e-4, "")
    reason = f"{factor:g} * (2000 / {width})^{power}: narrower models need higher rates{why}"
    rate = factor * (2000 / width) ** power
    if config.adapter.kind == "none":
        rate, reason = rate / 10, reason + "; a tenth, because all weights are trained (Schulman et al. 2025)"
    if (of := RATES[config.train.method]) != 1:
        rate, reason = rate * of, reason + f"; times {of:g} for {config.train.method}"
    if config.adapter.start is not None:
        reason += "; it is meant for a new adapter: one that continues may need less (train.lr_multiplier)"
    if config.adapter.init != "zero":
        reason += f"; it was not measured with adapter.init={config.adapter.init}"
    if config.train.lr_multiplier != 1:
        rate *= config.train.lr_multiplier
        reason += f"; times {config.train.lr_multiplier:g}, as configured"
    return Choice(float(f"{rate:.2g}"), reason)
