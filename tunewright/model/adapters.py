"""LoRA (Hu et al. 2021, 2106.09685), rsLoRA (2312.03732) and DoRA (2402.09353) over any linear layer.

Base weights are frozen in the compute dtype; A, B and DoRA's magnitudes are float32 and alone are trained. With the
adapter off, a layer is the base layer, bit for bit. Axes: I inputs, O outputs, R rank.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunewright.core.config import AdapterConfig
from tunewright.core.errors import ModelError
from tunewright.model.frozen.packed import Linear, PackedLinear, device_of, product, replace_module
from tunewright.model.heads.linear import attach_head, head_of


class LoRALinear(nn.Module):
    """A frozen linear layer plus a low-rank update: y = base(x) + scaling * B(A(x)), where ``scaling`` is the LoRA
    scaling factor; with magnitudes (DoRA), each output row of the updated weight is set to length ``magnitude``."""

    def __init__(self, base: Linear, config: AdapterConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        self.scaling = lora_scaling(config)
        self.dropout = config.dropout
        self.on = True
        a, device = initial_A(base.in_features, config.rank, generator), device_of(base)
        self.lora_A = nn.Parameter(a.to(device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, config.rank, device=device))
        if isinstance(base, nn.Linear) and base.weight.dtype == torch.float64:
            self.lora_A.data, self.lora_B.data = self.lora_A.double(), self.lora_B.double()
        self.magnitude = nn.Parameter(self.row_norm(self.base_weight())) if config.kind == "dora" else None
        self.train(base.training)  # a new module is in training mode: dropout would be active in evaluation

    def forward(self, x: Tensor) -> Tensor:
        if not self.on:
            return torch.as_tensor(self.base(x))  # a bias that is added later is rounded once more
        base = product(x, self.base)
        dropped = F.dropout(x, self.dropout, self.training) if self.dropout else x
        # The factor multiplies the R numbers of a token in the middle, and B is added as it is multiplied: no pass over
        # the output.
        small = F.linear(dropped, self.lora_A.to(x.dtype)) * self.scaling
        y = torch.addmm(base.flatten(0, -2), small.flatten(0, -2), self.lora_B.T.to(x.dtype)).view(base.shape)
        if self.magnitude is not None:
            # The norm is a constant to autograd (DoRA section 4.3).
            norm = self.row_norm(self.merged_weight_before_norm().detach())
            y = y * (self.magnitude / norm).to(x.dtype)
        return y if self.base.bias is None else y + self.base.bias

    def base_weight(self) -> Tensor:
        """W in the adapter's dtype (float32 or float64): the numbers that the model computes with."""
        base = self.base
        return (base.weight_in(base.dtype) if isinstance(base, PackedLinear) else base.weight).to(self.lora_A.dtype)

    def merged_weight_before_norm(self) -> Tensor:
        """W + scaling * BA in the adapter's dtype."""
        return self.base_weight() + self.scaling * (self.lora_B @ self.lora_A)

    def merged_weight(self) -> Tensor:
        merged = self.merged_weight_before_norm()
        return merged if self.magnitude is None else merged * (self.magnitude / self.row_norm(merged))[:, None]

    @staticmethod
    def row_norm(weight_OI: Tensor) -> Tensor:
        return weight_OI.square().sum(1).sqrt()


@dataclass(frozen=True)
class AdapterSummary:
    """What `attach` did: the names of the adapted layers, and how many of all numbers are trained."""

    layers: tuple[str, ...]
    trained: int
    total: int


def lora_scaling(config: AdapterConfig) -> float:
    """The LoRA scaling factor: alpha/rank, for rslora alpha/sqrt(rank)."""
    return config.alpha / (math.sqrt(config.rank) if config.kind == "rslora" else config.rank)


def targets(model: Any, patterns: list[str]) -> list[str]:
    """Names of the linear layers that match a pattern. A pattern matches a whole name or its end; `all-linear` leaves
    out the head."""
    head = model.get_output_embeddings()
    linear = [name for name, layer in model.named_modules() if isinstance(layer, Linear) and layer is not head]
    chosen = [
        n
        for n in linear
        if any(p == "all-linear" or fnmatch.fnmatchcase(n, p) or fnmatch.fnmatchcase(n, f"*.{p}") for p in patterns)
    ]
    if not chosen:
        kinds = sorted({n.rsplit(".", 1)[-1] for n in linear})
        raise ModelError(
            "LORA_NO_TARGET",
            f"adapter.targets {patterns} match no linear layer.",
            where="adapter.targets",
            fix=f"layers end in: {', '.join(kinds)}.",
        )
    return chosen


def attach(model: Any, config: AdapterConfig, seed: int, outputs: int = 0) -> AdapterSummary:
    """Put the adapter on (or, for kind none, make all weights float32 and trainable), and a head of so many
    ``outputs``, if any. The start depends on ``seed`` alone."""
    packed = sum(math.prod(m.shape) for m in model.modules() if isinstance(m, PackedLinear))
    total = packed + sum(p.numel() for p in model.parameters())
    if config.kind == "none":
        assert not packed, "packed weights are not trained"
        # The sum of many small updates is lost in bfloat16 (Zamirai et al. 2020), so trained weights are float32.
        if next(model.parameters()).dtype != torch.float64:
            model.float()
        model.requires_grad_(True)
        if outputs:
            attach_head(model, outputs)
        return AdapterSummary((), total, total)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    names = targets(model, config.targets)
    layers = {n: model.get_submodule(n) for n in names}
    largest = min(min(layer.out_features, layer.in_features) for layer in layers.values())
    if config.rank > largest:
        raise ModelError(
            "LORA_NO_TARGET",
            f"adapter.rank {config.rank} is larger than the smallest adapted layer ({largest}).",
            where="adapter.rank",
            fix=f"use at most {largest}.",
        )
    for name, layer in layers.items():
        replace_module(model, name, LoRALinear(layer, config, generator))
    if outputs:
        attach_head(model, outputs)
    trained = sum(p.numel() for p in trainable(model).values())
    return AdapterSummary(tuple(names), trained, total + trained)


def initialise(model: nn.Module, config: AdapterConfig, seed: int) -> None:
    """Reset an attached adapter and head to the values that `attach` gives them for this seed. Other weights, which are
    trained for kind none, stay as they are."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if (head := head_of(model)) is not None:
            head.weight.zero_()
        for layer in adapted(model).values():
            layer.lora_A.copy_(initial_A(layer.base.in_features, config.rank, generator))
            layer.lora_B.zero_()
            if layer.magnitude is not None:
                layer.magnitude.copy_(layer.row_norm(layer.base_weight()))


def initial_A(inputs: int, rank: int, generator: torch.Generator) -> Tensor:
    """a_RI in float32: uniform as PEFT's start, kaiming_uniform(a=sqrt(5))."""
    bound = 1 / math.sqrt(inputs)
    return torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)


def adapted(model: nn.Module) -> dict[str, LoRALinear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@contextmanager
def off(model: nn.Module) -> Iterator[None]:
    """Within, the model is the base model, bit for bit."""
    layers = list(adapted(model).values())
    before = [layer.on for layer in layers]
    try:
        for layer in layers:
            layer.on = False
        yield
    finally:
        for layer, on in zip(layers, before, strict=True):
            layer.on = on


@contextmanager
def detached(model: nn.Module) -> Iterator[None]:
    """Within, the base's own layers are back in their places, as before `attach`."""
    layers = adapted(model)
    try:
        for name, layer in layers.items():
            replace_module(model, name, layer.base)
        yield
    finally:
        for name, layer in layers.items():
            replace_module(model, name, layer)


@contextmanager
def scaled(model: nn.Module, scale: float) -> Iterator[None]:
    """Within, the adapter's update is multiplied by ``scale`` too, not only by the LoRA scaling factor; at 0 the model
    is the base model, bit for bit."""
    if scale == 0:
        with off(model):
            yield
        return
    layers = list(adapted(model).values())
    before = [layer.scaling for layer in layers]
    try:
        for layer in layers:
            layer.scaling *= scale
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling = scaling


def scale_in_place(model: nn.Module, scale: float) -> None:
    """Multiply the adapter's update by ``scale``, permanently."""
    with torch.no_grad():
        for layer in adapted(model).values():
            layer.lora_B.mul_(scale)


def merge(model: nn.Module) -> None:
    """Fold the adapter into the base weights, in float32 before casting back to the weight's own dtype. Packed weights
    are dense afterwards: packed again, they would lose the update."""
    dtype = next(model.parameters()).dtype
    for name, layer in adapted(model).items():
        with torch.no_grad():
            base = _dense(layer.base, dtype)
            base.weight.copy_(layer.merged_weight())
        replace_module(model, name, base)
    for name, module in list(model.named_modules()):
        if isinstance(module, PackedLinear):
            replace_module(model, name, _dense(module, dtype))


@torch.no_grad()
def _dense(layer: Linear, dtype: torch.dtype) -> nn.Linear:
    if not isinstance(layer, PackedLinear):
        return layer
    dense = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, layer.device, dtype)
    dense.weight.copy_(layer.weight_in(dtype))
    if layer.bias is not None:
        dense.bias.copy_(layer.bias)
    return dense.requires_grad_(False).train(layer.training)
