"""Resolves every "auto" to a number with a reason: a pure function of config, facts, row statistics and machine."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tunewright.core.config import (
    EMBEDDING,
    PAIRED,
    POOLED,
    RATED,
    REWARDED,
    Config,
    Kernels,
    MethodOptions,
    Plan,
    Recompute,
)
from tunewright.core.errors import ConfigError, TrainError
from tunewright.data.metrics import Kind
from tunewright.methods import METHODS
from tunewright.model.adapting import stored
from tunewright.model.encoders.folder import POOLINGS, Pooling
from tunewright.model.facts import Facts
from tunewright.system.machine import FASTER, Machine
from tunewright.tokens.packing import Layout
from tunewright.train import recipe
from tunewright.train.kernels import choose_kernels
from tunewright.train.recipe import CONFIGURED, Choice, PlanInputs, RowStats

Dtype = Literal["float32", "bfloat16"]
DECODE_MEMORY, MOST_DECODED = 0.2, 512  # fraction of the machine's memory; rows
LONGER = 4  # a prompt with examples than a row, about
UNKNOWN_ANSWER = 128  # tokens, where rows have no answers to measure: a paragraph
LONGEST_ANSWER = 512  # tokens, unless prove.max_new_tokens is set
# Fraction of the memory for the weights and the activations of one pass: of the machine's, and of a GPU's own.
TRAIN_MEMORY = {"cpu": 0.35, "cuda": 0.85}
FULL_PRECISION_MEMORY = 0.7  # fraction of the machine's, for the base as it is and as the run holds it
CERTAIN = 0.8  # of the estimated memory: below that a run would be killed, whatever the estimate's error


def max_length(config: Config, facts: Facts, machine: Machine, kind: Kind) -> Choice[int]:
    """Longest sequence in tokens: the limit for chats, the length of a piece for documents. Raises CONFIG_RANGE."""
    asked = config.train.max_length
    if asked != "auto":
        if asked > facts.context:
            raise ConfigError(
                "CONFIG_RANGE",
                f"train.max_length {asked} is over the model's context of {facts.context} tokens.",
                where="train.max_length",
                fix=f"use at most {facts.context}.",
            )
        return Choice(asked, CONFIGURED)
    if kind == "text":
        piece = min(facts.context, 512 if machine.device == "cpu" else 2048)
        return Choice(piece, f"documents are cut into pieces of {piece} tokens ({machine.device})")
    return Choice(facts.context, "the model's context; no row is cut")


def bytes_per_token(facts: Facts, sizes: RowStats, dtype: Dtype, kernels: Kernels, recompute: Recompute) -> float:
    """Memory of one token between forward and backward, in bytes.

    A layer keeps about 16 numbers per unit of width (34 in transformers' own modules), and, unless it has
    FlexAttention, the attention weights of a row as long as the longest; with ``layers`` recomputed, only its input.
    """
    size = 2 if dtype == "bfloat16" else 4
    layer = facts.hidden * (1 if recompute == "layers" else 34 if kernels == "transformers" else 16)
    kept = recompute == "none" and kernels in ("fused", "transformers")
    weights = facts.heads * sizes.longest if kept else 0
    padded = 9 / 8 if kernels in ("flex", "compiled") else 1  # `flex.bucket`
    head = 2 * size * facts.vocabulary * sizes.supervised / sizes.tokens
    return padded * facts.layers * size * (layer + weights) + head


def least_pass(sizes: RowStats, method: str, dropout: float) -> int:
    """Tokens of the largest pass, however small passes are to be: of the longest sequence; with dropout, of the longest
    pair, which `two_phase` does not divide then."""
    return sizes.longest_row if dropout and method in PAIRED else sizes.longest


def make_plan(config: Config, facts: Facts, sizes: RowStats, machine: Machine, kind: Kind, max_new_tokens: int) -> Plan:
    """The plan without its estimate. An adapter to start from is read. Raises CONFIG_CONFLICT, CONFIG_RANGE and
    ADAPTER_*."""
    config = config.model_copy(update={"adapter": stored.resolved(config.adapter, facts.sha256)})
    given, t = PlanInputs(config, facts, sizes, machine, kind), config.train
    if facts.packed == "stored" and machine.device != "cpu":
        message = "quantise=stored is for a CPU, which reads the weights from the model's files; a GPU cannot."
        raise ConfigError("CONFIG_CONFLICT", message, where="quantise", fix="use quantise=nf4, or none.")
    dtype, layout, batch = _dtype(given), _layout(given), recipe.batch_size(given)
    steps = recipe.steps(given, per_epoch := -(-sizes.rows // batch.value) * t.num_iterations)
    kernels = choose_kernels(given, layout.value, steps.value)
    trained, sequences = given, batch.value
    if t.method in REWARDED:  # what is trained on are samples after these rows
        trained = replace(given, sizes=sizes.with_samples(t.num_generations, max_new_tokens))
        sequences *= t.num_generations
    recompute = _recompute(trained, dtype.value, kernels.value, sequences)
    chosen: dict[str, Choice[Any]] = {
        "options": _options(given),
        "pooling": _pooling(config, facts),
        "dtype": dtype,
        "layout": layout,
        "batch_size": batch,
        "steps": steps,
        "lr": recipe.learning_rate(given),
        "gradient_checkpointing": recompute,
        "tokens_per_pass": _tokens_per_pass(
            trained, batch.value, _fits(trained, dtype.value, kernels.value, recompute.value), layout.value
        ),
        "max_length": max_length(config, facts, machine, kind),
        "decode_batch_size": _decode_batch(given, dtype.value, max_new_tokens),
        "max_new_tokens": Choice(
            max_new_tokens,
            CONFIGURED
            if config.prove.max_new_tokens != "auto"
            else "the rows have no answers whose length could be measured"
            if t.method in REWARDED
            else "nothing is written"
            if t.method in EMBEDDING
            else f"25% longer than the longest training answer, plus 8; at most {LONGEST_ANSWER} tokens",
        ),
        "kernels": kernels,
        "warmup_steps": Choice(math.ceil(t.warmup * steps.value), f"{t.warmup:.0%} of {steps.value} steps"),
        "eval_every": _eval_every(config, steps.value),
        "checkpoint_every": _checkpoint_every(config, steps.value),
    }
    return Plan(
        method=t.method,
        rows=sizes.rows,
        supervised_tokens=sizes.supervised,
        tokens=sizes.tokens,
        epochs=round(steps.value / per_epoch, 3),
        schedule=t.schedule,
        weight_decay=t.weight_decay,
        max_grad_norm=t.max_grad_norm,
        optimizer=t.optimizer,
        fsdp=_fsdp(config, facts),
        patience=t.patience,
        checkpoint_keep=config.checkpoint.keep,
        adapter=config.adapter,
        embed=config.embed if t.method in EMBEDDING else None,
        seed=config.seed,
        threads=machine.cores,
        adapt_threads=config.threads == "auto" and machine.device == "cpu" and machine.cores > 1,
        **{name: choice.value for name, choice in chosen.items()},
        reasons={name: c.reason for name, c in chosen.items() if c.reason} | _start(config),
    )


def _pooling(config: Config, facts: Facts) -> Choice[Pooling | None]:
    """None where each prediction is made at a token of its own."""
    if not facts.encoder or config.train.method not in POOLED:
        return Choice(None, "")
    if config.train.pooling != "auto":
        return Choice(config.train.pooling, CONFIGURED)
    if facts.pooling:
        return Choice(POOLINGS[facts.pooling], "as the model's own sentence-transformers config says")
    if config.train.method in EMBEDDING:
        return Choice("mean", "of all tokens: the model has no sentence-transformers config that says otherwise")
    return Choice("cls", "the first token: the model has no sentence-transformers config that says otherwise")


def _options(given: PlanInputs) -> Choice[MethodOptions]:
    t = given.config.train
    written = MethodOptions(**{name: getattr(t, name) for name in MethodOptions.model_fields})
    options = METHODS[t.method].options(written)
    if t.method not in RATED:
        return Choice(options, "")
    weights = recipe.rating_weights(given)
    names = dict(zip(("desirable_weight", "undesirable_weight"), weights.value, strict=True))
    return Choice(options.model_copy(update=names), weights.reason)


def _start(config: Config) -> dict[str, str]:
    """Why the adapter that training continues from may be used."""
    start = config.adapter.start
    return {} if start is None else {"adapter.start": stored.base_known(Path(start))}


def decoded_tokens(tokens: int, rows: int, answer: int) -> int:
    """Tokens of a row in a batch of decoding, about. ``tokens``: of all training ``rows``; ``answer``: the longest."""
    return LONGER * tokens // rows + answer


def batch_tokens(plan: Plan) -> int:
    """Tokens of a whole batch of decoding, at most."""
    return plan.decode_batch_size * decoded_tokens(plan.tokens, plan.rows, plan.max_new_tokens)


def _decode_batch(given: PlanInputs, dtype: Dtype, answer: int) -> Choice[int]:
    """Rows decoded together. It follows from the machine's memory, not from what is free at the moment: an answer's
    last bits depend on its batch, and a repeated run must give the same answers."""
    facts, sizes, machine = given.facts, given.sizes, given.machine
    if given.config.prove.batch_size != "auto":
        return Choice(given.config.prove.batch_size, CONFIGURED)
    tokens = decoded_tokens(sizes.tokens, sizes.rows, answer)
    row = facts.layers * facts.cached * (2 if dtype == "bfloat16" else 4) * tokens
    fits = max(1, int(DECODE_MEMORY * machine.memory_gb * 1e9 / row))
    batch = min(MOST_DECODED, 1 << (fits.bit_length() - 1))
    return Choice(
        batch, f"keys and values of about {fits} rows fit in {DECODE_MEMORY:.0%} of {machine.memory_gb:.0f} GB"
    )


def _fsdp(config: Config, facts: Facts) -> bool:
    whole = "all of the base is trained" if config.adapter.kind == "none" else "the base stays in its files"
    if config.train.fsdp and (config.adapter.kind == "none" or facts.packed == "stored"):
        message, fix = f"train.fsdp shards a frozen base in memory; here {whole}.", "leave train.fsdp at false."
        raise ConfigError("CONFIG_CONFLICT", message, where="train.fsdp", fix=fix)
    return config.train.fsdp


def _eval_every(config: Config, steps: int) -> Choice[int]:
    if config.train.eval_every != "auto":
        return Choice(config.train.eval_every, CONFIGURED)
    return Choice(max(5, math.ceil(steps / 6)), "about six dev losses, at least 5 steps apart")


def _checkpoint_every(config: Config, steps: int) -> Choice[int]:
    if config.checkpoint.every != "auto":
        return Choice(config.checkpoint.every, CONFIGURED)
    updates = config.train.num_iterations  # between which no checkpoint is
    return Choice(-(-max(10, math.ceil(steps / 5)) // updates) * updates, "about five checkpoints")


def _dtype(given: PlanInputs) -> Choice[Dtype]:
    config, machine = given.config, given.machine
    if config.adapter.kind == "none" and config.train.dtype == "bfloat16":
        raise ConfigError(
            "CONFIG_CONFLICT",
            "full fine-tuning in bfloat16 would round its updates away.",
            where="train.dtype",
            fix="leave train.dtype at auto.",
        )
    if config.adapter.kind == "none":
        return Choice(
            "float32", "full fine-tuning keeps its weights in float32, because bfloat16 would round its updates away"
        )
    if config.train.dtype != "auto":
        return Choice(config.train.dtype, CONFIGURED)
    if config.adapter.of_peft:
        return Choice("float32", f"PEFT computes {config.adapter.kind} in the dtype of its numbers, which are float32")
    wide, narrow = f"{machine.fp32_gflops:.0f}", f"{machine.bf16_gflops:.0f}"
    if machine.dtype == "bfloat16":
        return Choice(
            "bfloat16",
            f"this {machine.device} multiplies bfloat16 at {narrow} GFLOP/s and float32 at {wide}; "
            "trained weights stay float32",
        )
    return Choice(
        "float32", f"bfloat16 ({narrow} GFLOP/s) is not {FASTER}x as fast as float32 ({wide}) on this {machine.device}"
    )


def _layout(given: PlanInputs) -> Choice[Layout]:
    """Shared where it is exact; `packing` then shares only where it pays."""
    config, facts = given.config, given.facts
    dropout = "adapter.dropout would be the same for all rows that share a prefix"
    shared = facts.leak if not facts.shareable else dropout if config.adapter.dropout else ""
    packed = facts.leak if not facts.packable else "the model has dropout of its own" if facts.draws else ""
    against = {"shared": packed or shared, "packed": packed, "padded": ""}
    asked = config.train.layout
    if asked != "auto":
        if against[asked]:
            raise ConfigError(
                "CONFIG_CONFLICT",
                f"train.layout={asked}, but {against[asked]}.",
                where="train.layout",
                fix="leave it at auto.",
            )
        return Choice(asked, CONFIGURED)
    if packed:
        return Choice("padded", packed)
    if shared:
        return Choice("packed", shared)
    return Choice(
        "shared", "in the probe, a row has equal logits alone, in a pass with others, and with its prefix shared"
    )


def _fits(given: PlanInputs, dtype: Dtype, kernels: Kernels, recompute: Recompute) -> int:
    """Tokens of one pass that fit in `TRAIN_MEMORY`, besides what is kept."""
    room = TRAIN_MEMORY[given.machine.device] * given.machine.memory_gb * 1e9
    room -= _kept(given.facts, dtype, given.config.adapter.kind, given.config.train.optimizer)
    return int(max(0.0, room) / bytes_per_token(given.facts, given.sizes, dtype, kernels, recompute))


def each_of(dtype: Dtype) -> int:
    """Bytes of a number."""
    return 2 if dtype == "bfloat16" else 4


def _kept(facts: Facts, dtype: Dtype, kind: str, optimizer: str = "adamw") -> float:
    """Bytes from step to step: the weights, and where all of them are trained, their gradients and AdamW's moments in
    float32, or in 8 bits. An adapter's are small beside the weights."""
    trained = 10 if optimizer == "adamw8" else 16
    each = trained if kind == "none" else each_of(dtype)
    if facts.packed:  # and, dense, embedding and head
        return facts.packed_bytes + each * min(2 * facts.hidden * facts.vocabulary, facts.parameters)
    return each * facts.parameters


def _recompute(given: PlanInputs, dtype: Dtype, kernels: Kernels, batch: int) -> Choice[Recompute]:
    """The least recomputing that fits: recomputing whole layers costs a third of the step."""
    sizes, machine, config = given.sizes, given.machine, given.config
    if config.train.gradient_checkpointing != "auto":
        return Choice(config.train.gradient_checkpointing, CONFIGURED)
    least = least_pass(sizes, config.train.method, config.adapter.dropout)
    wanted = max(least, min(_most(machine, "packed"), batch * sizes.tokens // sizes.rows))
    memory = f"{TRAIN_MEMORY[machine.device]:.0%} of {machine.memory_gb:.0f} GB"
    options: tuple[Recompute, ...] = ("none", "layers") if given.facts.encoder else ("none", "attention", "layers")
    for option in options:
        fits = _fits(given, dtype, kernels, option)
        if fits >= wanted:
            return Choice(option, f"about {fits} tokens fit in {memory}, {wanted} are wanted per pass")
    return Choice("layers", f"even so, only about {fits} of the {wanted} tokens wanted per pass fit in {memory}")


def _most(machine: Machine, layout: Layout) -> int:
    """Tokens of a pass beyond which nothing is gained; with sharing, a longer pass shares more."""
    return (2048 if machine.device == "cpu" else 16384) * (4 if layout == "shared" else 1)


def _tokens_per_pass(given: PlanInputs, batch: int, fits: int, layout: Layout) -> Choice[int]:
    """``fits``: the tokens for which there is memory."""
    sizes, machine, config = given.sizes, given.machine, given.config
    if config.train.tokens_per_pass != "auto":
        return Choice(config.train.tokens_per_pass, CONFIGURED)
    most, least = _most(machine, layout), least_pass(sizes, config.train.method, config.adapter.dropout)
    if config.train.method in EMBEDDING and layout != "padded":  # one pass computes the vectors of a step once
        most = max(most, 2 * batch * sizes.tokens // sizes.rows)
    what = "sequence" if least == sizes.longest else "pair, which adapter.dropout keeps together,"
    return Choice(
        max(least, 256, min(most, fits)),
        f"about {fits} tokens fit in {TRAIN_MEMORY[machine.device]:.0%} of {machine.memory_gb:.0f} GB; "
        f"more than {most} in one pass bring no gain; the longest {what} has {least}",
    )


def full_precision_fits(facts: Facts, machine: Machine) -> bool:
    """Whether a base whose weights the run rounds can be asked as it is in its files, too, beside the run's own."""
    if facts.packed != "nf4":
        return False  # the run's own base has the same numbers
    dense = 4 * facts.parameters + _kept(facts, "float32", "lora")
    return dense <= FULL_PRECISION_MEMORY * machine.memory_gb * 1e9


def require_memory(plan: Plan, facts: Facts, sizes: RowStats, free: float, device: str = "cpu") -> None:
    """Raises TRAIN_MEMORY if training cannot fit into ``free`` bytes of the device, with settings that can, so that a
    run is not killed by the system after minutes."""

    def needed(tokens: int, recompute: Recompute) -> float:
        return kept + tokens * bytes_per_token(facts, sizes, plan.dtype, plan.kernels, recompute)

    if plan.method in REWARDED:
        sizes = sizes.with_samples(plan.options.num_generations, plan.max_new_tokens)
    kept = _kept(facts, plan.dtype, plan.adapter.kind, plan.optimizer)
    if plan.teacher is not None:
        kept += 1e9 * plan.teacher.gigabytes
    least = least_pass(sizes, plan.method, plan.adapter.dropout)
    need = needed(min(max(plan.tokens_per_pass, least), sizes.tokens), plan.gradient_checkpointing)
    if plan.teacher is not None and not plan.teacher.settings.on_policy:  # it reads the rows, and is dropped
        need = max(need, kept + each_of(plan.dtype) * plan.teacher.parameters)
    if need * CERTAIN <= free:
        return
    smallest = max(least, 256)
    less = needed(smallest, "layers")
    stored = less - kept + _kept(replace(facts, packed="stored"), plan.dtype, plan.adapter.kind)
    may_be_stored = device == "cpu" and plan.adapter.kind != "none" and not facts.packed
    if less > free >= stored and may_be_stored:
        fix = "set quantise=stored, which leaves the weights in their files, or end other programs."
    elif less <= free:
        fix = f"set train.gradient_checkpointing=layers train.tokens_per_pass={smallest}, or end other programs."
    else:
        fix = (
            f"end other programs; the smallest setting needs {less / 1e9:.1f} GB, so choose a smaller model or shorter "
            "rows (train.max_length with data.too_long=drop)."
        )
    raise TrainError(
        "TRAIN_MEMORY",
        f"training needs about {need / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB can be used.",
        where="train.tokens_per_pass",
        fix=fix,
    )
