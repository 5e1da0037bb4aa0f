"""The interface of a training method: what its functions may touch, and the value that a loss returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from tunewright.core.config import MethodOptions, Plan
from tunewright.data.messages import Example
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.packing import Microbatch
from tunewright.tokens.sequences import TrainRow
from tunewright.tokens.template import Template


@dataclass(frozen=True)
class Loss:
    """The loss of one microbatch. ``sum`` and ``metrics`` are sums over what `Method.weight` counts; `train.step`
    divides both by the weight of the whole batch. The metrics go into the step's line of metrics.jsonl; they are
    tensors, so that a GPU need not be waited for."""

    sum: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


Progress = Callable[[int], None]


class Method(Protocol):
    """A training method, listed in `METHODS`: a module of `methods/`, or a value made by one.

    A batch is the training rows of one optimizer step; a microbatch is what one forward pass computes of it.

    What a method may do: read its arguments, and run forward passes of the model. It keeps nothing between calls, so
    that a resumed run computes what an uninterrupted one would. What it must leave to `train.step`: no ``backward``, no
    ``.grad``, no optimizer, no change of a parameter's value or ``requires_grad``, no ``train()`` or ``eval()``, no
    seeding of a random generator, no files.

    Numbers of a row that are not tokens (a teacher's probabilities, a reference model's log-probability) travel as
    ``signal``: `prepare` or `precompute` puts them into `TrainRow.signal`, `microbatches` gathers them in
    `Microbatch.signal`, and `loss` reads them there. They are part of the hash that a resumed run must match.

    The model is in eval mode, unless stated otherwise. Before each step, torch's global generator is seeded with a
    function of (plan.seed, step), for dropout in `loss` and for whatever `microbatches` draws from it. Before a dev
    loss it is not: what must be the same in every dev loss is drawn from a generator seeded with (plan.seed, step).
    """

    def options(self, options: MethodOptions) -> MethodOptions:
        """The settings that only some methods read, with every "auto" resolved that this one reads."""

    def prepare(self, template: Template, example: Example, row: int, max_length: int | None) -> list[TrainRow]:
        """The training rows of an example; without a model. They are cached in the run folder, under a hash of the
        arguments and of the source of the method's module. Raises DataError or ModelError."""

    def precompute(
        self, model: LanguageModel, rows: Sequence[TrainRow], plan: Plan, progress: Progress
    ) -> list[TrainRow]:
        """The rows, with whatever must be computed once before the first step. Without gradients; the model has its
        adapter at the initial values. ``progress(n)`` is called as n rows finish; not at all if there is nothing to do.

        Called with all training rows and with all dev rows; by the self-test and the profiler with a few rows. So what
        is added to a row must not depend on the others, except for rounding. Repeated when a run is resumed, and must
        then give the same, bit for bit."""

    def microbatches(
        self, model: LanguageModel, rows: Sequence[TrainRow], chosen: Sequence[int], plan: Plan, step: int
    ) -> list[Microbatch]:
        """The microbatches of a batch: the ``chosen`` rows in step ``step`` (from 0), or all dev rows. With gradients
        enabled in a step, without them in a dev loss. Answers that are trained on as the model writes them are drawn
        and graded before, by `sampling.rollouts`: they need graders and files, and come as rows with samples."""

    def weight(self, microbatch: Microbatch) -> float:
        """What the microbatch contributes to the number that the loss of the batch is divided by: tokens, pairs or
        samples. In a step it is called for all microbatches before the first `loss`."""

    def loss(self, model: LanguageModel, microbatch: Microbatch, plan: Plan) -> Loss:
        """The sum, not the mean, of the loss over the microbatch. In a step and in the profiler: in train mode, with
        gradients. In a dev loss: in eval mode, without gradients. In the self-test: in eval mode, with gradients."""

    def initial_loss(self, plan: Plan, rows: Sequence[TrainRow]) -> float | None:
        """The loss of the rows before the first step, per unit of weight, if the method's formula gives it for every
        model (with plan.options.nll_weight 0). The self-test compares the actual one with it."""


def as_written(options: MethodOptions) -> MethodOptions:
    """`Method.options` of a method that resolves none."""
    return options


def as_prepared(model: LanguageModel, rows: Sequence[TrainRow], plan: Plan, progress: Progress) -> list[TrainRow]:
    """`Method.precompute` of a method that computes nothing before the first step."""
    return list(rows)


def unknown(plan: Plan, rows: Sequence[TrainRow]) -> float | None:
    """`Method.initial_loss` of a method whose first loss depends on the model."""
    return None
