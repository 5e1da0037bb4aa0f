"""The rank and LoRA scaling factor of each layer; and adapters as plain LoRA of one rank and factor. Axes: I inputs, O
outputs, R rank."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tunewright.core.config import AdapterConfig

T = TypeVar("T")


def lora_scaling(config: AdapterConfig) -> float:
    """The LoRA scaling factor: alpha/rank, for rslora alpha/sqrt(rank)."""
    return config.alpha / (math.sqrt(config.rank) if config.kind == "rslora" else config.rank)


def of_layer(config: AdapterConfig, name: str) -> AdapterConfig:
    """The config with the rank and alpha of a layer: those of the first pattern that matches, as in PEFT."""

    def own(pattern: Mapping[str, T], default: T) -> T:
        return next((v for key, v in pattern.items() if re.match(rf"(.*\.)?({key})$", name)), default)

    if config.uniform:
        return config
    rank, alpha = own(config.rank_pattern, config.rank), own(config.alpha_pattern, config.alpha)
    return config.model_copy(update={"rank": rank, "alpha": alpha})


def as_plain(tensors: Mapping[str, Tensor], config: AdapterConfig) -> tuple[dict[str, Tensor], AdapterConfig]:
    """The `update_tensors` of lora or rslora as LoRA without initial values to subtract, of one rank and alpha for all
    layers."""
    if config.init == "zero" and config.uniform:
        return dict(tensors), config
    names = [name.removesuffix(".lora_A") for name in tensors if name.endswith(".lora_A")]
    factors = {name: _plain_factors(tensors, name, lora_scaling(of_layer(config, name))) for name in names}
    rank = max(len(a_RI) for a_RI, _ in factors.values())
    plain: dict[str, Tensor] = {}
    for name, (a_RI, b_OR) in factors.items():
        missing = rank - len(a_RI)
        plain |= {f"{name}.lora_A": F.pad(a_RI, (0, 0, 0, missing)), f"{name}.lora_B": F.pad(b_OR, (0, missing))}
    own = {"kind": "lora", "rank": rank, "alpha": float(rank), "init": "zero", "rank_pattern": {}, "alpha_pattern": {}}
    return plain, config.model_copy(update=own)


def _plain_factors(tensors: Mapping[str, Tensor], name: str, scaling: float) -> tuple[Tensor, Tensor]:
    """(a_RI, b_OR) of a layer, scaled."""
    a, b = tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"]
    if f"{name}.start_A" not in tensors:
        return a, b * scaling
    start_A, start_B = tensors[f"{name}.start_A"], tensors[f"{name}.start_B"]
    return torch.cat((a - start_A, start_A)), torch.cat((b, b - start_B), 1) * scaling
