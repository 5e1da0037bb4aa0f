"""The blocks of a GGUF file, kept as they are: what is trained on is the file that people serve.

Only weights that, unpacked, equal the model's bit for bit are packed, so nothing that is computed changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tunewright.model.frozen.packed import PackedLinear

if TYPE_CHECKING:
    from gguf import ReaderTensor


@dataclass(frozen=True)
class Blocks:
    """``kind``: the number of a type of weights in GGUF."""

    kind: int

    def unpack(self, stored: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        from transformers.integrations.gguf.dequant import dequantize

        weight_OI: Tensor = dequantize(stored["blocks"].flatten(), self.kind, torch.float32).view(shape)
        return weight_OI


def tensors(file: Path) -> dict[str, ReaderTensor]:
    """The quantised tensors of a file, by name."""
    from gguf import GGMLQuantizationType, GGUFReader

    plain = {GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16}
    return {str(t.name): t for t in GGUFReader(file).tensors if t.tensor_type not in plain}


def pack(layer: nn.Linear, stored: ReaderTensor, heads: tuple[int, ...]) -> PackedLinear | None:
    """The layer in the blocks of ``stored``; None if they are another weight. ``heads``: numbers of heads by which
    llama.cpp may have interleaved the rows of a query or key projection."""
    shape, blocks = (layer.out_features, layer.in_features), torch.from_numpy(stored.data.copy())
    for rows_O in _orders(layer.out_features, heads):
        packed = PackedLinear(Blocks(int(stored.tensor_type)), {"blocks": blocks[rows_O]}, shape, layer.bias)
        if torch.equal(packed.weight_in(layer.weight.dtype), layer.weight):
            return packed
    return None


def _orders(rows: int, heads: tuple[int, ...]) -> Iterator[Tensor]:
    """The rows as they are in the file, or with the two halves of each head taken alternately."""
    yield torch.arange(rows)
    for count in heads:
        if rows % (2 * count) == 0:
            yield torch.arange(rows).view(count, -1, 2).transpose(1, 2).flatten()
