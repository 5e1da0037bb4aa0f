"""A frozen linear layer whose weight is stored in blocks of few bits, and made dense when it is used.

What is computed is exactly what the dense weight would give: in the forward pass, and again in the backward pass, so
nothing dense is kept between them. Axes: I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Form(Protocol):
    """How the weight of a layer is stored."""

    def unpack(self, stored: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        """weight_OI in float32, from the bytes in which it is stored."""


class PackedLinear(nn.Module):
    """A linear layer with a weight of ``shape`` in ``form``. It has no parameters; its weight is in buffers of bytes,
    so that changing a module's dtype leaves it as it is."""

    bias: Tensor | None

    def __init__(self, form: Form, stored: Mapping[str, Tensor], shape: tuple[int, int], bias: Tensor | None) -> None:
        super().__init__()
        self.form, self.shape = form, shape
        self.out_features, self.in_features = shape
        self.names = tuple(stored)
        for name, tensor in stored.items():
            self.register_buffer(name, tensor.detach().contiguous().view(torch.uint8))
        self.register_buffer("bias", None if bias is None else bias.detach())

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        """weight_OI, dense."""
        return self.form.unpack({name: getattr(self, name) for name in self.names}, self.shape).to(dtype)

    @property
    def device(self) -> torch.device:
        where: torch.device = getattr(self, self.names[0]).device
        return where

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_in(x.dtype), self.bias)


Linear = nn.Linear | PackedLinear


def weight_of(layer: Linear, dtype: torch.dtype) -> Tensor:
    """weight_OI of a frozen layer: in ``dtype`` if it is packed, otherwise as it is, in the dtype of the model."""
    return layer.weight_in(dtype) if isinstance(layer, PackedLinear) else layer.weight


def device_of(layer: Linear) -> torch.device:
    return layer.device if isinstance(layer, PackedLinear) else layer.weight.device


def replaced(module: nn.Module, name: str, layer: nn.Module) -> None:
    """Put ``layer`` in the place of the module's ``name``."""
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, layer)
