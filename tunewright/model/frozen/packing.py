"""Pack the linear layers of a model's decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from tunewright.core.errors import ModelError
from tunewright.model.frozen import gguf_blocks, nf4, stored
from tunewright.model.frozen.packed import PackedLinear, replace_module

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def pack(module: PreTrainedModel, how: str, dtype: torch.dtype) -> None:
    """Pack every linear layer but the head, one after another, and turn all other parameters into ``dtype``. ``how``:
    nf4; stored; or a GGUF file, whose blocks are kept where they are the layer's weight. What is packed are the weights
    as they are loaded, so in their file's dtype, whatever the model then computes in."""
    head = module.get_output_embeddings()
    layers = {n: m for n, m in module.named_modules() if isinstance(m, nn.Linear) and m is not head}
    simple = {"nf4": nf4.pack, stored.NAME: stored.pack}
    for name, layer in _each(layers, simple[how]) if how in simple else _blocks(module, layers, Path(how)):
        replace_module(module, name, layer)
    packed = [layer for layer in module.modules() if isinstance(layer, PackedLinear)]
    if not packed:
        what = "none of the model's layers has its weights in blocks of this file."
        raise ModelError("MODEL_UNSUPPORTED", what, where=how, fix="leave quantise out, or choose nf4.")
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    for layer in packed:
        layer.dtype = dtype
        layer.bias = None if layer.bias is None else layer.bias.to(dtype)


def _each(
    layers: dict[str, nn.Linear], pack_one: Callable[[nn.Linear], PackedLinear]
) -> Iterator[tuple[str, PackedLinear]]:
    while layers:
        name, layer = layers.popitem()  # so that nothing holds what was replaced
        yield name, pack_one(layer)


def _blocks(module: PreTrainedModel, layers: dict[str, nn.Linear], file: Path) -> Iterator[tuple[str, PackedLinear]]:
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
    from transformers.integrations.gguf import read_gguf_metadata

    config = module.config.get_text_config()
    metadata, _ = read_gguf_metadata(str(file))
    architecture = next(k for k, v in MODEL_ARCH_NAMES.items() if v == metadata["general.architecture"])
    names, stored = get_tensor_name_map(architecture, config.num_hidden_layers), gguf_blocks.tensors(file)
    heads = (config.num_attention_heads, config.num_key_value_heads)
    while layers:
        name, layer = layers.popitem()
        tensor = stored.get(f"{names.get_name(name)}.weight")
        if tensor is not None and (packed := gguf_blocks.pack(layer, tensor, heads)) is not None:
            yield name, packed
