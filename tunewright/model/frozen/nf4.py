"""NF4 (QLoRA, Dettmers et al. 2023, 2305.14314): 4 bits a weight, and a float32 scale for each block of 64.

Packed and unpacked by bitsandbytes, but held as plain tensors. The scales are not quantised in their turn: then the
unpacked weights, packed again, give the same bits.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn

from tunewright.core.errors import MissingExtra
from tunewright.model.frozen.packed import PackedLinear

BLOCK, BYTES = 64, 36  # weights of a block, and its bytes


@dataclass(frozen=True)
class NF4:
    def unpack(self, stored: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        scale = stored["scale"].view(torch.float32)
        weight_OI: Tensor = torch.ops.bitsandbytes.dequantize_4bit(
            stored["packed"], scale, BLOCK, "nf4", list(shape), torch.float32
        )
        return weight_OI


def pack(layer: nn.Linear) -> PackedLinear:
    """The layer in NF4. Raises MISSING_PACKAGE."""
    packed, state = bitsandbytes().quantize_4bit(
        layer.weight.detach(), blocksize=BLOCK, quant_type="nf4", compress_statistics=False
    )
    stored = {"packed": packed, "scale": state.absmax}
    return PackedLinear(NF4(), stored, (layer.out_features, layer.in_features), layer.bias)


def digest(dense: str) -> str:
    """Hash of a model whose layers are packed, from that of the dense one."""
    return hashlib.sha256(f"{dense} nf4 {BLOCK}".encode()).hexdigest()


def bitsandbytes(part: str = "functional", why: str = "quantise=nf4") -> ModuleType:
    """A module of the package. Raises MISSING_PACKAGE."""
    try:
        return importlib.import_module(f"bitsandbytes.{part}")
    except ImportError:
        raise MissingExtra("bitsandbytes", why, "pip install 'tunewright[quantised]'") from None
