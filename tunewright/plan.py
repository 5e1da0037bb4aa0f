"""Every "auto" becomes a number with a reason, before anything is trained. Pure: (config, facts, lengths, machine) -> Plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tunewright.config import Config, Estimate, Plan
from tunewright.errors import ConfigError
from tunewright.machine import Machine
from tunewright.metrics import Kind
from tunewright.models import Facts
from tunewright.rendering import Rendered

Dtype = Literal["float32", "bfloat16"]
ASKED = "as asked"


@dataclass(frozen=True)
class Sizes:
    """What the rendered training rows add up to."""

    rows: int
    tokens: int
    supervised: int
    longest: int

    @staticmethod
    def of(rendered: Sequence[Rendered]) -> Sizes:
        lengths = [len(r.ids) for r in rendered]
        return Sizes(len(rendered), sum(lengths), sum(r.supervised for r in rendered), max(lengths))


def max_length(config: Config, facts: Facts, machine: Machine, kind: Kind) -> tuple[int, str]:
    """Tokens of the longest sequence: the limit for chats, the length of a piece for documents."""
    asked = config.train.max_length
    if asked != "auto":
        if asked > facts.context:
            raise ConfigError(
                "CONFIG_RANGE",
                f"train.max_length {asked} is over the model's context of {facts.context} tokens.",
                where="train.max_length",
                mend=f"use at most {facts.context}.",
            )
        return asked, ASKED
    if kind == "text":
        piece = min(facts.context, 512 if machine.device == "cpu" else 2048)
        return piece, f"documents are cut into pieces of {piece} tokens ({machine.device})"
    return facts.context, "the model's context; no row is cut"


def bytes_per_token(facts: Facts, sizes: Sizes, dtype: Dtype) -> float:
    """Memory of one token between forward and backward: about 34 numbers a layer and width, and 14 bytes a logit where it is supervised."""
    body = facts.layers * facts.hidden * 34 * (2 if dtype == "bfloat16" else 4)
    return body + 14 * facts.vocabulary * sizes.supervised / sizes.tokens


def judged_together(config: Config, facts: Facts, plan: Plan, machine: Machine, new_tokens: int) -> int:
    """Rows decoded in one batch: as many as their keys and values fit in 15 % of the free memory, at most 256."""
    if config.prove.batch != "auto":
        return config.prove.batch
    row = 2 * facts.layers * facts.hidden * (2 if plan.dtype == "bfloat16" else 4) * (4 * plan.tokens // plan.rows + new_tokens)
    return max(1, min(256, int(0.15 * machine.free_gb * 1e9 / row)))


def make(config: Config, facts: Facts, sizes: Sizes, machine: Machine, kind: Kind) -> Plan:
    """The plan without its estimate (see `with_estimate`)."""
    t, why = config.train, {}
    dtype, why["dtype"] = _dtype(config, machine)
    layout, why["layout"] = _layout(config, facts)
    batch, why["batch"] = _batch(config, sizes)
    per_epoch = -(-sizes.rows // batch)
    steps, why["steps"] = _steps(config, sizes, per_epoch)
    lr, why["lr"] = _rate(config, facts, steps)
    capacity, why["capacity"] = _capacity(config, facts, sizes, machine, dtype)
    limit, why["max_length"] = max_length(config, facts, machine, kind)
    why["warmup_steps"] = f"{t.warmup:.0%} of {steps} steps"
    eval_every, why["eval_every"] = (
        (t.eval_every, ASKED)
        if t.eval_every != "auto"
        else (max(5, math.ceil(steps / 6)), "about six dev losses, at least 5 steps apart")
    )
    saving = config.checkpoint.every
    every, why["checkpoint_every"] = (
        (saving, ASKED) if saving != "auto" else (max(10, math.ceil(steps / 5)), "about five checkpoints")
    )
    return Plan(
        rows=sizes.rows,
        supervised_tokens=sizes.supervised,
        tokens=sizes.tokens,
        steps=steps,
        epochs=round(steps / per_epoch, 3),
        batch=batch,
        capacity=capacity,
        max_length=limit,
        layout=layout,
        dtype=dtype,
        lr=lr,
        schedule=t.schedule,
        warmup_steps=math.ceil(t.warmup * steps),
        weight_decay=t.weight_decay,
        clip=t.clip,
        eval_every=eval_every,
        patience=t.patience,
        checkpoint_every=every,
        checkpoint_keep=config.checkpoint.keep,
        adapter=config.adapter,
        seed=config.seed,
        threads=machine.cores,
        reasons=why,
    )


def _dtype(config: Config, machine: Machine) -> tuple[Dtype, str]:
    if config.adapter.kind == "none" and config.train.dtype == "bfloat16":
        raise ConfigError(
            "CONFIG_CONFLICT",
            "full fine-tuning in bfloat16 would round its updates away.",
            where="train.dtype",
            mend="leave train.dtype at auto.",
        )
    if config.adapter.kind == "none":
        return "float32", "full fine-tuning keeps its weights in float32, because bfloat16 would round its updates away"
    if config.train.dtype != "auto":
        return config.train.dtype, ASKED
    if machine.bf16_gflops > 1.3 * machine.fp32_gflops:
        return (
            "bfloat16",
            f"this {machine.device} multiplies bfloat16 at {machine.bf16_gflops:.0f} GFLOP/s and float32 at {machine.fp32_gflops:.0f}; trained weights stay float32",
        )
    return (
        "float32",
        f"bfloat16 ({machine.bf16_gflops:.0f} GFLOP/s) is not 1.3x as fast as float32 ({machine.fp32_gflops:.0f}) on this {machine.device}",
    )


def _layout(config: Config, facts: Facts) -> tuple[Literal["packed", "padded"], str]:
    asked = config.train.layout
    if asked == "packed" and not facts.packable:
        raise ConfigError(
            "CONFIG_CONFLICT", f"train.layout=packed, but {facts.leak}.", where="train.layout", mend="leave it at auto."
        )
    if asked != "auto":
        return asked, ASKED
    if facts.packable:
        return "packed", "a row alone and the same row packed give equal logits in the probe"
    return "padded", facts.leak


def _batch(config: Config, sizes: Sizes) -> tuple[int, str]:
    if config.train.batch != "auto":
        return config.train.batch, ASKED
    batch = 8 if sizes.rows >= 160 else 4
    return batch, f"{batch} rows a step: small batches suit LoRA, and {sizes.rows} rows should give many steps"


def _steps(config: Config, sizes: Sizes, per_epoch: int) -> tuple[int, str]:
    t = config.train
    if t.steps != "auto":
        return t.steps, ASKED
    if t.epochs != "auto":
        return max(1, round(t.epochs * per_epoch)), f"{t.epochs:g} epochs of {per_epoch} steps, as asked"
    epochs = 4 if sizes.rows < 300 else 3 if sizes.rows < 1000 else 2 if sizes.rows < 5000 else 1
    return epochs * per_epoch, f"{epochs} epochs of {per_epoch} steps: fewer epochs for more rows"


def _rate(config: Config, facts: Facts, steps: int) -> tuple[float, str]:
    if config.train.lr != "auto":
        return config.train.lr, ASKED
    rate = 5e-4 * (2000 / facts.hidden) ** 0.78
    reason = f"5e-4 * (2000 / {facts.hidden})^0.78: narrower models take larger steps"
    if config.adapter.kind == "none":
        return float(f"{rate / 10:.2g}"), f"{reason}; a tenth of that, because all weights train (Schulman et al. 2025)"
    haste = min(2.0, max(1.0, 2.0 - (steps - 150) / 250))
    if haste > 1:
        reason += f"; times {haste:.2g}, because {steps} steps are few: short LoRA runs want larger ones (Schulman et al. 2025)"
    return float(f"{rate * haste:.2g}"), reason


def _capacity(config: Config, facts: Facts, sizes: Sizes, machine: Machine, dtype: Dtype) -> tuple[int, str]:
    if config.train.capacity != "auto":
        return config.train.capacity, ASKED
    room = 0.4 * machine.free_gb * 1e9 - facts.parameters * (2 if dtype == "bfloat16" else 4)
    fits = int(max(0.0, room) / bytes_per_token(facts, sizes, dtype))
    most = 2048 if machine.device == "cpu" else 16384
    return (
        max(sizes.longest, 256, min(most, fits)),
        f"about {fits} tokens fit in 40 % of the {machine.free_gb:.0f} GB free; more than {most} in one pass gain nothing; the longest row has {sizes.longest}",
    )


def with_estimate(plan: Plan, tokens_per_second: float, peak_gb: float, passes: int) -> Plan:
    """The same plan with what the calibration passes predict: training only, judging not counted."""
    total = plan.tokens * plan.epochs
    seconds = total / tokens_per_second if tokens_per_second else 0.0
    reason = f"{passes} forward and backward passes on real rows at {tokens_per_second:.0f} tokens/s; {total:.0f} tokens to train on; dev losses add about a tenth"
    estimate = Estimate(
        tokens_per_second=round(tokens_per_second, 1),
        train_seconds=round(seconds * 1.1, 1),
        peak_gb=round(peak_gb, 2),
        reason=reason,
    )
    return plan.model_copy(update={"estimate": estimate})
