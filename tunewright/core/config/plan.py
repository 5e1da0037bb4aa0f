"""Plan: every number that training will use, with the reason for each. Fixed before training starts."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_serializer

from tunewright.core.config.schema import (
    AdapterConfig,
    DistillConfig,
    EmbedConfig,
    Frozen,
    Growing,
    Kernels,
    MethodOptions,
    Recompute,
)


class Estimate(Growing):
    """Time and memory, extrapolated from a few training rows on this machine. ``stages``: seconds of each stage that
    takes long, by name. ``ranks``: times as fast as training would be with so many processes, by the tokens that each
    computes."""

    ADDED = ("stages", "ranks")

    tokens_per_second: float
    train_seconds: float
    peak_gb: float
    reason: str
    stages: dict[str, float] = Field(default_factory=dict)
    ranks: dict[int, float] = Field(default_factory=dict)


class Teacher(Frozen):
    """The model that train.method=distill learns from, as it was when the run was planned. ``sha256``: of its files;
    ``hidden``: numbers of a hidden state; ``vocabulary``: the tokens that the divergence covers, which both models
    have; ``packable``, ``shareable``, ``window``: as in `model.facts.Facts`; ``gigabytes``: of the hidden states, the
    output head and, if it reads samples, its weights, in memory while the run trains."""

    name: str
    path: str
    sha256: str
    parameters: int
    hidden: int
    vocabulary: int
    packable: bool
    shareable: bool
    window: int | None
    gigabytes: float
    settings: DistillConfig

    @property
    def title(self) -> str:
        """The name without folders of this machine."""
        return Path(self.name).name if Path(self.name).is_absolute() else self.name


class Plan(Growing):
    """Every number that training uses; ``reasons`` maps a field to an explanation of its value.

    ``options``: the settings that only the method reads. ``labels``: of the outputs of a head, in their order; empty
    without a head. ``standardised``: mean and standard deviation of the training answers, in whose units a head gives
    numbers. ``embed``: how texts become vectors, if the model gives them. ``pooling``: how an encoder's hidden states
    become what the head reads, or a vector. ``teacher``: of train.method=distill. ``rows`` and ``tokens`` count
    training rows and their tokens; ``supervised_tokens`` counts the targets among them.
    ``fsdp``: whether several processes keep the base's layers in shards.
    ``adapt_threads``: whether training uses fewer threads while other processes use the cores.
    ``version`` is that of the schema of plan.json.
    ``max_new_tokens`` and ``decode_batch_size`` apply to all arms; the last bits of an answer depend on its batch.
    """

    ADDED = ("options", "labels", "standardised", "embed", "teacher", "optimizer", "adapt_threads", "fsdp", "pooling")

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
    kernels: Kernels
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
    options: MethodOptions = MethodOptions()
    labels: tuple[str, ...] = ()
    standardised: tuple[float, float] | None = None
    embed: EmbedConfig | None = None
    pooling: Literal["cls", "mean", "last"] | None = None
    teacher: Teacher | None = None
    optimizer: Literal["adamw", "adamw8"] = "adamw"
    fsdp: bool = False
    adapt_threads: bool = False
    max_new_tokens: int
    decode_batch_size: int
    estimate: Estimate | None = None
    reasons: dict[str, str]
    version: Literal[1] = 1

    @property
    def silent(self) -> str:
        """What the model does instead of writing; empty if it writes."""
        return "answers with its head" if self.labels else "gives vectors of texts" if self.embed else ""

    @field_serializer("adapter")
    def _adapter(self, adapter: AdapterConfig) -> dict[str, object]:
        """Without what came later, unless it is set."""
        fields = AdapterConfig.model_fields
        plain = {k for k in AdapterConfig.ADDED if getattr(adapter, k) == fields[k].default}
        return adapter.model_dump(exclude=plain)
