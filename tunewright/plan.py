"""Every "auto" becomes a number with a reason, before anything is trained. Pure: (config, facts, lengths, machine) -> Plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tunewright.config import Config, Estimate, Plan
from tunewright.errors import ModelError
from tunewright.machine import Machine
from tunewright.metrics import Kind
from tunewright.models import Facts
from tunewright.rendering import Rendered


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
            raise ModelError("DATA_TOO_LONG", f"train.max_length {asked} is over the model's context of {facts.context} tokens.", where="train.max_length", mend=f"use at most {facts.context}.")
        return asked, "as asked"
    if kind == "text":
        piece = min(facts.context, 512 if machine.device == "cpu" else 2048)
        return piece, f"documents are cut into pieces of {piece} tokens ({machine.device})"
    return facts.context, "the model's context; no row is cut"


def bytes_per_token(config: Config, facts: Facts, sizes: Sizes, dtype: str) -> float:
    """Memory of one token between forward and backward: about 34 numbers a layer and width, and 14 bytes a logit where it is supervised."""
    body = facts.layers * facts.hidden * 34 * (2 if dtype == "bfloat16" else 4)
    return body + 14 * facts.vocabulary * sizes.supervised / sizes.tokens


def make(config: Config, facts: Facts, sizes: Sizes, machine: Machine, kind: Kind) -> Plan:
    """The plan without its estimate (see `with_estimate`)."""
    t, why = config.train, {}
    asked = "as asked"

    if t.dtype != "auto":
        dtype, why["dtype"] = t.dtype, asked
    elif machine.bf16_gflops > 1.3 * machine.fp32_gflops:
        dtype = "bfloat16"
        why["dtype"] = f"this {machine.device} multiplies bfloat16 at {machine.bf16_gflops:.0f} GFLOP/s and float32 at {machine.fp32_gflops:.0f}; trained weights stay float32"
    else:
        dtype = "float32"
        why["dtype"] = f"bfloat16 ({machine.bf16_gflops:.0f} GFLOP/s) is not 1.3x as fast as float32 ({machine.fp32_gflops:.0f}) on this {machine.device}"
    if config.adapter.kind == "none":
        dtype, why["dtype"] = "float32", "full fine-tuning keeps its weights in float32"

    layout = t.layout if t.layout != "auto" else ("packed" if facts.packable else "padded")
    why["layout"] = asked if t.layout != "auto" else "a row alone and packed give equal logits in the probe" if facts.packable else facts.leak
    if layout == "packed" and not facts.packable:
        raise ModelError("CONFIG_CONFLICT", f"train.layout=packed, but {facts.leak}.", where="train.layout", mend="leave it at auto.")

    if t.batch != "auto":
        batch, why["batch"] = t.batch, asked
    else:
        batch = 16 if sizes.rows >= 640 else 8 if sizes.rows >= 160 else 4
        why["batch"] = f"{batch} rows a step: small batches suit LoRA, and {sizes.rows} rows should give many steps"
    per_epoch = -(-sizes.rows // batch)
    if t.steps != "auto":
        steps, why["steps"] = t.steps, asked
    else:
        epochs = t.epochs if t.epochs != "auto" else 4.0 if sizes.rows < 300 else 3.0 if sizes.rows < 1000 else 2.0 if sizes.rows < 5000 else 1.0
        steps = max(1, round(epochs * per_epoch))
        why["steps"] = f"{epochs:g} epochs of {per_epoch} steps" + (" (fewer epochs for more rows)" if t.epochs == "auto" else "")

    if t.lr != "auto":
        lr, why["lr"] = t.lr, asked
    else:
        lr = 5e-4 * (2000 / facts.hidden) ** 0.78
        why["lr"] = f"5e-4 * (2000 / {facts.hidden})^0.78: narrower models take larger steps, and LoRA about ten times those of full fine-tuning (Schulman et al. 2025)"
        if config.adapter.kind == "none":
            lr, why["lr"] = lr / 10, why["lr"] + "; a tenth of that, because all weights train"
        lr = float(f"{lr:.2g}")

    if t.capacity != "auto":
        capacity, why["capacity"] = t.capacity, asked
    else:
        room = 0.4 * machine.free_gb * 1e9 - facts.parameters * (2 if dtype == "bfloat16" else 4)
        fits = int(max(0.0, room) / bytes_per_token(config, facts, sizes, dtype))
        most = 4096 if machine.device == "cpu" else 16384
        capacity = max(sizes.longest, 256, min(most, fits))
        why["capacity"] = f"{capacity} tokens a pass: about {fits} fit in 40 % of the {machine.free_gb:.0f} GB free, more than {most} gain nothing"
    warmup = math.ceil(t.warmup * steps)
    why["warmup_steps"] = f"{t.warmup:.0%} of {steps} steps"
    if t.eval_every != "auto":
        eval_every, why["eval_every"] = t.eval_every, asked
    else:
        eval_every, why["eval_every"] = max(5, math.ceil(steps / 6)), "about six dev losses, at least 5 steps apart"
    if config.checkpoint.every != "auto":
        every, why["checkpoint_every"] = config.checkpoint.every, asked
    else:
        every, why["checkpoint_every"] = max(10, math.ceil(steps / 5)), "about five checkpoints"
    limit, why["max_length"] = max_length(config, facts, machine, kind)
    return Plan(
        rows=sizes.rows, supervised_tokens=sizes.supervised, tokens=sizes.tokens, steps=steps, epochs=round(steps / per_epoch, 3), batch=batch,
        capacity=capacity, max_length=limit, layout=layout, dtype=dtype, lr=lr, schedule=t.schedule, warmup_steps=warmup,  # type: ignore[arg-type]
        weight_decay=t.weight_decay, clip=t.clip, eval_every=eval_every, patience=t.patience, checkpoint_every=every,
        checkpoint_keep=config.checkpoint.keep, adapter=config.adapter, seed=config.seed, threads=machine.cores, reasons=why,
    )


def with_estimate(plan: Plan, tokens_per_second: float, peak_gb: float, passes: int) -> Plan:
    """The same plan with what the calibration passes predict: training only, judging not counted."""
    total = plan.tokens * plan.epochs
    seconds = total / tokens_per_second if tokens_per_second else 0.0
    reason = f"{passes} forward and backward passes on real rows at {tokens_per_second:.0f} tokens/s; {total:.0f} tokens to train on; dev losses add about a tenth"
    estimate = Estimate(tokens_per_second=round(tokens_per_second, 1), train_seconds=round(seconds * 1.1, 1), peak_gb=round(peak_gb, 2), reason=reason)
    return plan.model_copy(update={"estimate": estimate})
