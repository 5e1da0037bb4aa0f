"""The frozen layers of a base in shards, one on each of the processes that train together (FSDP2).

Only their storage changes: a layer's weights are gathered when it computes, forward or backward, and dropped after it
(Zhao et al. 2023, 2304.11277). The adapter, its gradient and its optimizer stay whole on every process, so that steps,
checkpoints and the order of sums are those of a base that is not sharded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tunewright.core.errors import ModelError
from tunewright.model import fused_llama
from tunewright.model.adapters import trainable
from tunewright.model.frozen.packed import PackedLinear
from tunewright.model.language_model import LanguageModel
from tunewright.train.ranks import Ranks


def sharded(model: LanguageModel, ranks: Ranks, device: str) -> LanguageModel:
    """The model with its layers in shards over the processes, on ``device`` (cpu or cuda). Its module is changed for
    good: only a training in this process can use it. All processes call this. Raises MODEL_UNSUPPORTED."""
    mesh = init_device_mesh(device, (ranks.world,))
    adapter = set(trainable(model.module).values())
    for layer in list(_layers(model)):
        for packed in layer.modules():
            if isinstance(packed, PackedLinear):
                _as_parameters(packed)
        if model.kernels != "transformers":
            fused = functools.partial(fused_llama.layer, layer)
            layer.forward = functools.partial(_forward, layer.forward, fused)  # FSDP's hooks run when it is called
        # Without an outer module, each layer is a root, which would keep its weights after the forward pass.
        fully_shard(layer, mesh=mesh, ignored_params=adapter, reshard_after_forward=True)
    for module in model.module.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if not isinstance(tensor, torch.distributed.tensor.DTensor):
                tensor.data = tensor.data.to(device)
    return replace(model, sharded=True)


def _forward(own: Callable[..., Tensor], fused: Callable[..., Tensor], *given: object, **named: object) -> Tensor:
    """The fused layer, unless transformers' decoder calls: it passes arguments by name."""
    return own(*given, **named) if named else fused(*given)


def _layers(model: LanguageModel) -> Iterator[nn.Module]:
    """The modules that transformers itself keeps whole on a device."""
    kinds = set(model.module._no_split_modules or ())
    layers = [part for part in model.decoder.modules() if type(part).__name__ in kinds]
    if not layers:
        message = "transformers does not say which layers of this architecture can be sharded."
        raise ModelError("MODEL_UNSUPPORTED", message, where="train.fsdp", fix="leave train.fsdp at false.")
    yield from layers


def _as_parameters(packed: PackedLinear) -> None:
    """The bytes of a packed weight as parameters, which are what is sharded."""
    for name in packed.names:
        stored = getattr(packed, name)
        delattr(packed, name)
        packed.register_parameter(name, nn.Parameter(stored, requires_grad=False))
