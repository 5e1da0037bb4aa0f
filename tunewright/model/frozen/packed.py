"""A frozen linear layer whose weight is stored in blocks of few bits, and made dense when it is used.

What is computed is exactly what the dense weight would give: in the forward pass, and again in the backward pass, so
nothing dense is kept between them. Axes: I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Form(Protocol):
    """How the weight of a layer is stored."""

    def unpack(self, stored: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        """weight_OI in float32, from the bytes in which it is stored."""


class PackedLinear(nn.Module):
    """A linear layer with a weight of ``shape`` in ``form``. It has no parameters; its weight is in buffers of bytes,
    so that changing a module's dtype leaves it as it is. ``dtype``: what the model computes in."""

    bias: Tensor | None
    dtype: torch.dtype = torch.float32

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
        y = product(x, self)
        return y if self.bias is None else y + self.bias


Linear = nn.Linear | PackedLinear


def product(x: Tensor, layer: Linear) -> Tensor:
    """x times the weight of a frozen layer, without its bias."""
    if not isinstance(layer, PackedLinear):
        return F.linear(x, layer.weight)
    y: Tensor = _Product.apply(x, layer)  # type: ignore[no-untyped-call]
    return y


class _Product(torch.autograd.Function):
    """Makes the weight again in the backward pass; autograd's own product would keep it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.weight_in(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        return grads[0] @ ctx.layer.weight_in(grads[0].dtype), None


def weight_of(layer: Linear, dtype: torch.dtype) -> Tensor:
    """weight_OI of a frozen layer: in ``dtype`` if it is packed, otherwise as it is, in the dtype of the model."""
    return layer.weight_in(dtype) if isinstance(layer, PackedLinear) else layer.weight


def device_of(layer: Linear) -> torch.device:
    return layer.device if isinstance(layer, PackedLinear) else layer.weight.device


def replace_module(module: nn.Module, name: str, layer: nn.Module) -> None:
    """Put ``layer`` in the place of the module's ``name``."""
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, layer)
