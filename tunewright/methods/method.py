"""The interface of a training method: five functions, and the value that its loss returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from tunewright.core.config import Plan
from tunewright.data.messages import Example
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.packing import Batch
from tunewright.tokens.sequences import TrainRow
from tunewright.tokens.template import Template


@dataclass(frozen=True)
class Loss:
    """The loss of one batch. ``sum`` and ``metrics`` are sums over what `Method.weight` counts; the loop divides both
    by the weight of the whole step. The metrics go into the step's line of metrics.jsonl."""

    sum: Tensor
    metrics: dict[str, float] = field(default_factory=dict)


class Method(Protocol):
    """A training method; in practice a module of `methods/`, listed in `METHODS`.

    Each is a pure function of its arguments, so that a resumed run computes what an uninterrupted one would.
    """

    def prepare(self, template: Template, example: Example, row: int, max_length: int | None) -> list[TrainRow]:
        """The training rows of an example. Raises DataError or ModelError."""

    def annotate(self, model: LanguageModel, rows: Sequence[TrainRow], plan: Plan) -> list[TrainRow]:
        """The rows, with whatever must be computed once before the first step, such as a reference model's
        log-probabilities. Called without gradients; the model has its adapter, untrained."""

    def batches(
        self, model: LanguageModel, rows: Sequence[TrainRow], chosen: Sequence[int], plan: Plan, step: int
    ) -> list[Batch]:
        """The forward passes of one step (from 0) over the ``chosen`` rows. A method that samples does so here."""

    def weight(self, batch: Batch) -> float:
        """What the loss of the batch is divided by: tokens, pairs or samples. Summed over the batches of a step before
        the first backward pass."""

    def loss(self, model: LanguageModel, batch: Batch, plan: Plan) -> Loss:
        """The sum, not the mean, of the loss over the batch."""
