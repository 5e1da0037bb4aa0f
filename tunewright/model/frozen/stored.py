"""Weights that stay in the model's files, in the dtype that they have there: the system maps the files into memory, and
reads, keeps and drops their pages as it sees fit. So a model may be larger than the machine's memory.

What is computed is what the model in the plan's dtype would give, because bfloat16 and float16 numbers are float32
numbers, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tunewright.model.frozen.packed import PackedLinear

NAME = "stored"


@dataclass(frozen=True)
class Stored:
    """``dtype``: in the file."""

    dtype: torch.dtype

    def unpack(self, stored: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        return stored["weight"].view(self.dtype).view(shape).float()


def pack(layer: nn.Linear) -> PackedLinear:
    """The layer, with its weight where it is."""
    shape = (layer.out_features, layer.in_features)
    return PackedLinear(Stored(layer.weight.dtype), {"weight": layer.weight}, shape, layer.bias)
