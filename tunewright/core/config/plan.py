"""Plan: every number of a run as it will be used, with the reason for each. Frozen before training."""

from __future__ import annotations

from typing import Literal

from tunewright.core.config.schema import AdapterConfig, Frozen, Recompute


class Estimate(Frozen):
    """What a few calibration passes on this machine predict. A forecast, not a promise."""

    tokens_per_second: float
    train_seconds: float
    peak_gb: float
    reason: str


class Plan(Frozen):
    """Every number of a run, fixed before training; ``reasons`` says where each came from."""

    method: str
    rows: int
    supervised_tokens: int
    tokens: int
    steps: int
    epochs: float
    batch_size: int
    tokens_per_pass: int
    max_length: int
    layout: Literal["shared", "packed", "padded"]
    kernels: Literal["fused", "transformers"]
    gradient_checkpointing: Recompute
    dtype: Literal["float32", "bfloat16"]
    lr: float
    schedule: Literal["cosine", "linear", "constant"]
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    eval_every: int
    patience: int
    checkpoint_every: int
    checkpoint_keep: int
    adapter: AdapterConfig
    seed: int
    threads: int
    estimate: Estimate | None = None
    reasons: dict[str, str]
