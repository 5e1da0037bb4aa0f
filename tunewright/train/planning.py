"""Every "auto" becomes a number with a reason, before anything is trained. Pure: (config, facts, lengths, machine) ->
Plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tunewright.core.config import Config, Estimate, Plan, Recompute
from tunewright.core.errors import ConfigError
from tunewright.data.metrics import Kind
from tunewright.model.facts import Facts
from tunewright.tokens.packing import Layout
from tunewright.tokens.sequences import TrainRow
from tunewright.train.machine import Machine

Dtype = Literal["float32", "bfloat16"]
DECODE_MEMORY, MOST_DECODED = 0.1, 256  # fraction of the machine's memory; rows
TRAIN_MEMORY = 0.35  # fraction of the machine's memory for the activations of one pass
ASKED = "as asked"


@dataclass(frozen=True)
class RowStats:
    """What the rendered training rows add up to."""

    rows: int
    tokens: int
    supervised: int
    longest: int

    @staticmethod
    def of(rows: Sequence[TrainRow]) -> RowStats:
        return RowStats(
            rows=len(rows),
            tokens=sum(r.tokens for r in rows),
            supervised=sum(r.supervised for r in rows),
            longest=max(r.tokens for r in rows),
        )


def max_length(config: Config, facts: Facts, machine: Machine, kind: Kind) -> tuple[int, str]:
    """Tokens of the longest sequence: the limit for chats, the length of a piece for documents."""
    asked = config.train.max_length
    if asked != "auto":
        if asked > facts.context:
            raise ConfigError(
                "CONFIG_RANGE",
                f"train.max_length {asked} is over the model's context of {facts.context} tokens.",
                where="train.max_length",
                fix=f"use at most {facts.context}.",
            )
        return asked, ASKED
    if kind == "text":
        piece = min(facts.context, 512 if machine.device == "cpu" else 2048)
        return piece, f"documents are cut into pieces of {piece} tokens ({machine.device})"
    return facts.context, "the model's context; no row is cut"


def bytes_per_token(facts: Facts, sizes: RowStats, dtype: Dtype, recompute: Recompute) -> float:
    """Memory of one token between forward and backward. A layer holds about 16 numbers for each of its width (34 by
    transformers' own modules) and attention's weights, for rows as long as the longest; or only its input."""
    size = 2 if dtype == "bfloat16" else 4
    layer = facts.hidden * (1 if recompute == "layers" else 16 if facts.fused else 34)
    weights = facts.heads * sizes.longest if recompute == "none" else 0
    return facts.layers * size * (layer + weights) + 2 * size * facts.vocabulary * sizes.supervised / sizes.tokens


def _decode_batch(
    config: Config, facts: Facts, sizes: RowStats, machine: Machine, dtype: Dtype, answer: int
) -> tuple[int, str]:
    """Rows decoded together. It follows from the machine's memory, not from what is free at the moment: an answer's
    last bits depend on its batch, and a run and its repetition must answer alike."""
    if config.prove.batch_size != "auto":
        return config.prove.batch_size, ASKED
    row = (
        2 * facts.layers * facts.hidden * (2 if dtype == "bfloat16" else 4) * (4 * sizes.tokens // sizes.rows + answer)
    )
    fits = max(1, int(DECODE_MEMORY * machine.memory_gb * 1e9 / row))
    batch = min(MOST_DECODED, 1 << (fits.bit_length() - 1))
    return batch, f"keys and values of about {fits} rows fit in {DECODE_MEMORY:.0%} of {machine.memory_gb:.0f} GB"


def make(config: Config, facts: Facts, sizes: RowStats, machine: Machine, kind: Kind, max_new_tokens: int) -> Plan:
    """The plan without its estimate (see `with_estimate`)."""
    t, why = config.train, {}
    dtype, why["dtype"] = _dtype(config, machine)
    layout, why["layout"] = _layout(config, facts)
    batch, why["batch_size"] = _batch(config, sizes)
    per_epoch = -(-sizes.rows // batch)
    steps, why["steps"] = _steps(config, sizes, per_epoch)
    lr, why["lr"] = _rate(config, facts, steps)
    recompute, why["gradient_checkpointing"] = _recompute(config, facts, sizes, machine, dtype, batch)
    capacity, why["tokens_per_pass"] = _capacity(config, facts, sizes, machine, dtype, layout, recompute)
    limit, why["max_length"] = max_length(config, facts, machine, kind)
    decoded, why["decode_batch_size"] = _decode_batch(config, facts, sizes, machine, dtype, max_new_tokens)
    why["max_new_tokens"] = (
        ASKED if config.prove.max_new_tokens != "auto" else "a quarter longer than the longest training answer"
    )
    why["kernels"] = (
        "its layers are ones that we run ourselves, and equal in the probe"
        if facts.fused
        else "its layers are run as they are"
    )
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
        method=t.method,
        rows=sizes.rows,
        supervised_tokens=sizes.supervised,
        tokens=sizes.tokens,
        steps=steps,
        epochs=round(steps / per_epoch, 3),
        batch_size=batch,
        tokens_per_pass=capacity,
        max_length=limit,
        layout=layout,
        kernels="fused" if facts.fused else "transformers",
        gradient_checkpointing=recompute,
        dtype=dtype,
        lr=lr,
        schedule=t.schedule,
        warmup_steps=math.ceil(t.warmup * steps),
        weight_decay=t.weight_decay,
        max_grad_norm=t.max_grad_norm,
        eval_every=eval_every,
        patience=t.patience,
        checkpoint_every=every,
        checkpoint_keep=config.checkpoint.keep,
        adapter=config.adapter,
        seed=config.seed,
        threads=machine.cores,
        max_new_tokens=max_new_tokens,
        decode_batch_size=decoded,
        reasons=why,
    )


def _dtype(config: Config, machine: Machine) -> tuple[Dtype, str]:
    if config.adapter.kind == "none" and config.train.dtype == "bfloat16":
        raise ConfigError(
            "CONFIG_CONFLICT",
            "full fine-tuning in bfloat16 would round its updates away.",
            where="train.dtype",
            fix="leave train.dtype at auto.",
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


def _layout(config: Config, facts: Facts) -> tuple[Layout, str]:
    """Shared where it is exact; `packing` then shares only where it pays."""
    asked = config.train.layout
    dropout = "a shared beginning would be dropped in the same way for all its rows"
    shared = (
        facts.leak if not facts.shareable else f"adapter.dropout is on, and {dropout}" if config.adapter.dropout else ""
    )
    packed = facts.leak if not facts.packable else "the model has dropout of its own" if facts.draws else ""
    against = {"shared": packed or shared, "packed": packed, "padded": ""}
    if asked != "auto":
        if against[asked]:
            raise ConfigError(
                "CONFIG_CONFLICT",
                f"train.layout={asked}, but {against[asked]}.",
                where="train.layout",
                fix="leave it at auto.",
            )
        return asked, ASKED
    if packed:
        return "padded", packed
    if shared:
        return "packed", shared
    return (
        "shared",
        "a row alone, in one pass with others and with its beginning shared gives equal logits in the probe",
    )


def _batch(config: Config, sizes: RowStats) -> tuple[int, str]:
    if config.train.batch_size != "auto":
        return config.train.batch_size, ASKED
    batch = 8 if sizes.rows >= 160 else 4
    return batch, f"{batch} rows a step: small batches suit LoRA, and {sizes.rows} rows should give many steps"


def _steps(config: Config, sizes: RowStats, per_epoch: int) -> tuple[int, str]:
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


def _fits(facts: Facts, sizes: RowStats, machine: Machine, dtype: Dtype, recompute: Recompute) -> int:
    """Tokens of one pass whose memory is a fraction of the machine's, minus the weights."""
    room = TRAIN_MEMORY * machine.memory_gb * 1e9 - facts.parameters * (2 if dtype == "bfloat16" else 4)
    return int(max(0.0, room) / bytes_per_token(facts, sizes, dtype, recompute))


def _recompute(
    config: Config, facts: Facts, sizes: RowStats, machine: Machine, dtype: Dtype, batch: int
) -> tuple[Recompute, str]:
    """The least work that fits: computing layers again costs a third of the step."""
    if config.train.gradient_checkpointing != "auto":
        return config.train.gradient_checkpointing, ASKED
    wanted = max(sizes.longest, min(_most(machine, "packed"), batch * sizes.tokens // sizes.rows))
    ways: tuple[Recompute, ...] = ("none", "attention", "layers")
    for way in ways:
        fits = _fits(facts, sizes, machine, dtype, way)
        if fits >= wanted:
            return (
                way,
                f"about {fits} tokens fit in {TRAIN_MEMORY:.0%} of {machine.memory_gb:.0f} GB, {wanted} are wanted in a pass",
            )
    return (
        "layers",
        f"even so, only about {fits} of {wanted} wanted tokens fit in {TRAIN_MEMORY:.0%} of {machine.memory_gb:.0f} GB",
    )


def _most(machine: Machine, layout: Layout) -> int:
    """Tokens of a pass beyond which nothing is gained; a longer pass shares more."""
    return (2048 if machine.device == "cpu" else 16384) * (4 if layout == "shared" else 1)


def _capacity(
    config: Config, facts: Facts, sizes: RowStats, machine: Machine, dtype: Dtype, layout: Layout, recompute: Recompute
) -> tuple[int, str]:
    if config.train.tokens_per_pass != "auto":
        return config.train.tokens_per_pass, ASKED
    fits, most = _fits(facts, sizes, machine, dtype, recompute), _most(machine, layout)
    return (
        max(sizes.longest, 256, min(most, fits)),
        f"about {fits} tokens fit in {TRAIN_MEMORY:.0%} of {machine.memory_gb:.0f} GB; more than {most} in one pass gain nothing; the longest row has {sizes.longest}",
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
