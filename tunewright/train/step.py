"""One optimizer step, and the dev loss: the method's microbatches, one division by their summed weight, clip, AdamW.

The loss of a batch is divided by its weight here: for the gradient, for the logged loss and metrics, and for the dev
loss. (The self-test divides the loss of its few rows in the same way.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tunewright.core.config import Plan
from tunewright.core.errors import TrainError
from tunewright.methods import METHODS
from tunewright.model.adapters import trainable, update_tensors
from tunewright.model.frozen import nf4
from tunewright.model.language_model import LanguageModel
from tunewright.tokens import packing
from tunewright.tokens.packing import Microbatch
from tunewright.tokens.sequences import TrainRow
from tunewright.train import dealing
from tunewright.train.ranks import ALONE, Ranks

FLOOR = 0.02
LOSS = ""  # the loss among a step's sums; metrics have names
# Dev losses are compared with each other, so whatever a method samples for them is sampled as in this step.
DEV_STEP = 0


@dataclass(frozen=True)
class Learner:
    """A model, its trained tensors by name, and their optimizer. All three change as steps are taken."""

    model: LanguageModel
    parameters: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer

    @property
    def saved(self) -> dict[str, Tensor]:
        """What is saved of the model."""
        return update_tensors(self.model.module)


@dataclass(frozen=True)
class Step:
    """``loss`` per unit of the method's weight (nats per supervised token, in fine-tuning), ``metrics`` likewise;
    ``norm`` of the gradient before clipping; ``tokens`` of the rows, of which ``computed`` went through the model;
    ``supervised``: the weights of their supervised tokens, summed."""

    loss: float
    norm: float
    tokens: int
    computed: int
    supervised: float
    metrics: dict[str, float] = field(default_factory=dict)


def make_learner(model: LanguageModel, plan: Plan) -> Learner:
    """A learner of the model's trainable tensors, with a new optimizer."""
    parameters = trainable(model.module)
    return Learner(model, parameters, make_optimizer(parameters, plan))


def make_optimizer(parameters: dict[str, torch.nn.Parameter], plan: Plan) -> torch.optim.Optimizer:
    """AdamW (betas 0.9, 0.999; eps 1e-8); decay on matrices only, never on norms, biases or magnitudes. ``lr_ratio`` of
    a group: its rate over `learning_rate`. adamw8: moments in 8 bits, in blocks (Dettmers et al. 2022, 2110.02861)."""
    ratio = plan.adapter.loraplus_lr_ratio
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, p in parameters.items():
        key = (plan.weight_decay if p.ndim >= 2 else 0.0, ratio if name.endswith("lora_B") else 1.0)
        groups.setdefault(key, []).append(p)
    described = [{"params": own, "weight_decay": decay, "lr_ratio": ratio} for (decay, ratio), own in groups.items()]
    if plan.optimizer == "adamw8":
        eight_bit: torch.optim.Optimizer = nf4.bitsandbytes("optim", "train.optimizer=adamw8").AdamW8bit(
            described, lr=plan.lr, betas=(0.9, 0.999), eps=1e-8
        )
        return eight_bit
    fused = all(p.device.type == "cuda" for p in parameters.values())
    return torch.optim.AdamW(described, lr=plan.lr, betas=(0.9, 0.999), eps=1e-8, fused=fused)


def learning_rate(plan: Plan, step: int) -> float:
    """Rate of step ``step`` (from 0): linear warm-up, then decay to ``FLOOR`` of the peak at the last step."""
    if step < plan.warmup_steps:
        return plan.lr * (step + 1) / plan.warmup_steps
    if plan.schedule == "constant":
        return plan.lr
    done = (step - plan.warmup_steps) / max(1, plan.steps - 1 - plan.warmup_steps)
    shape = 1 - done if plan.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return plan.lr * (FLOOR + (1 - FLOOR) * shape)


@dataclass(frozen=True)
class Batch:
    """What a step computes. ``weight``: that of all microbatches, by which the loss and its gradient are divided."""

    microbatches: Sequence[Microbatch]
    weight: float


Sums = dict[str, Tensor]  # the loss of a microbatch and the method's metrics, each a sum


def begin(learner: Learner, rows: Sequence[TrainRow], plan: Plan, step: int) -> Batch:
    """The batch of global step ``step`` (from 0); the learner is in train mode, and has no gradient."""
    method = METHODS[plan.method]
    # Dropout, and what the method draws, are functions of (seed, step), so that a resumed run does the same.
    torch.manual_seed(_seed(plan, step))
    # Several updates for a rollout have the same rows; of other methods, each step is one.
    chosen = packing.step_rows(len(rows), plan.batch_size, plan.seed, step // plan.options.num_iterations)
    microbatches = method.microbatches(learner.model, rows, chosen, plan, step)
    # Sum over all forward passes, divide once: a mean of means would weigh short passes more (transformers PR 34191).
    weight = sum(method.weight(b) for b in microbatches)
    learner.optimizer.zero_grad(set_to_none=True)
    learner.model.module.train()
    return Batch(microbatches, weight)


def take_step(learner: Learner, rows: Sequence[TrainRow], plan: Plan, step: int, ranks: Ranks = ALONE) -> Step:
    """Take global step ``step`` (from 0), together with the other ``ranks``. On TRAIN_NOT_FINITE, the weights are
    unchanged."""
    method, batch = METHODS[plan.method], begin(learner, rows, plan, step)
    sums: dict[int, Sums] = {}
    gradients: dict[int, Tensor] = {}
    owners = dealing.owners(dealing.costs(batch.microbatches), ranks.world)
    for number, owned in ranks.parts(owners, learner.model.sharded):
        if number:  # also of the pass, so that it does not matter who computes those before it
            torch.manual_seed(_seed(plan, step, number))
        part = method.loss(learner.model, batch.microbatches[number], plan)
        (part.sum / batch.weight).backward()  # type: ignore[no-untyped-call]
        gradient = _taken(learner.parameters) if ranks.world > 1 else None
        if owned:
            sums[number] = {name: x.detach().double() for name, x in {LOSS: part.sum, **part.metrics}.items()}
            if gradient is not None:
                gradients[number] = gradient
    if ranks.world > 1:
        _put(learner.parameters, ranks.ordered_sum(gradients, owners, _room(learner.parameters)))
    return finish(learner, batch, sums, plan, step, ranks)


def finish(
    learner: Learner, batch: Batch, sums: Mapping[int, Sums], plan: Plan, step: int, ranks: Ranks = ALONE
) -> Step:
    """Clip the gradient and take the optimizer's step. ``sums``: of the microbatches that this process has computed.
    Raises TRAIN_NOT_FINITE before anything changes."""
    learner.model.module.eval()
    total_norm = torch.nn.utils.clip_grad_norm_(learner.parameters.values(), plan.max_grad_norm)
    # Read all at once: a GPU is waited for once a step.
    norm, *values = torch.stack([total_norm.double(), *(x for own in sums.values() for x in own.values())]).tolist()
    read = iter(values)
    totals: dict[str, float] = {}
    for own in ranks.by_part({number: {name: next(read) for name in own} for number, own in sums.items()}):
        for name, value in own.items():
            totals[name] = totals.get(name, 0.0) + value
    means = {name: total / batch.weight for name, total in totals.items()}
    loss = means.pop(LOSS)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise TrainError(
            "TRAIN_NOT_FINITE",
            f"step {step + 1}: loss {loss}, gradient norm {norm}; the step was discarded.",
            fix="lower train.lr, or set train.dtype=float32; earlier checkpoints are still valid.",
        )
    for group in learner.optimizer.param_groups:
        group["lr"] = learning_rate(plan, step) * group["lr_ratio"]
    learner.optimizer.step()
    return Step(
        loss=loss,
        norm=norm,
        tokens=sum(b.tokens for b in batch.microbatches),
        computed=sum(b.ids_BT.size for b in batch.microbatches),
        supervised=float(sum(b.weight_N.sum() for b in batch.microbatches)),
        metrics=means,
    )


def _seed(plan: Plan, step: int, number: int = 0) -> int:
    """Of a step's pass."""
    return plan.seed * 1_000_003 + step + number * 1_000_000_007


def _room(parameters: Mapping[str, torch.nn.Parameter]) -> Tensor:
    """For the gradient of all parameters, uninitialised."""
    return next(iter(parameters.values())).new_empty(sum(p.numel() for p in parameters.values()))


def _taken(parameters: Mapping[str, torch.nn.Parameter]) -> Tensor:
    """The gradient of all parameters, which have none afterwards."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters.values()]
    for p in parameters.values():
        p.grad = None
    return torch.cat([gradient.flatten() for gradient in gradients])


def _put(parameters: Mapping[str, torch.nn.Parameter], gradient: Tensor) -> None:
    sizes = [p.numel() for p in parameters.values()]
    for p, own in zip(parameters.values(), torch.split(gradient, sizes), strict=True):
        p.grad = own.view_as(p)


@torch.no_grad()
def dev_loss(model: LanguageModel, dev: Sequence[TrainRow], plan: Plan, ranks: Ranks = ALONE) -> float:
    """Loss over all dev rows, divided as in a step; dropout off. Raises TRAIN_NOT_FINITE."""
    method, module = METHODS[plan.method], model.module
    was = module.training
    module.eval()
    parts = method.microbatches(model, dev, range(len(dev)), plan, DEV_STEP)
    own: dict[int, float] = {}
    owners = dealing.owners(dealing.costs(parts), ranks.world)
    for number, owned in ranks.parts(owners, model.sharded):
        value = float(method.loss(model, parts[number], plan).sum)
        if owned:
            own[number] = value
    total, weight = 0.0, 0.0  # not sum(), which compensates for rounding since Python 3.12: other bits by version
    for value, microbatch in zip(ranks.by_part(own), parts, strict=True):
        total, weight = total + value, weight + method.weight(microbatch)
    module.train(was)
    if not math.isfinite(total):
        raise TrainError(
            "TRAIN_NOT_FINITE",
            f"the loss on the dev rows is {total}.",
            fix="lower train.lr, or set train.dtype=float32; earlier checkpoints are still valid.",
        )
    return total / weight
