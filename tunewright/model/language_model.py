"""A language model as a value: transformers' module, and how its forward passes are computed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from tunewright.core.config import Kernels
from tunewright.model.decoding.fused import StepKernel, step_kernel
from tunewright.model.encoders.folder import Pooling
from tunewright.tokens.encoder_text import is_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LanguageModel:
    """``kernels``: what computes the decoder of a flat microbatch: the module itself; `fused_llama`; that with
    FlexAttention; or with its layers compiled too. ``plain_head``:
    logits are just head(hidden), with no scale, cap or bias (`has_plain_head`). ``decoding``: how steps of decoding are
    computed (`decoding.fused.step_kernel`). ``sharded``: whether the layers' weights are in shards on several
    processes, and there only while a layer is called as a module. ``encoder``: each token sees both sides, and the
    module has no output head. ``pooling``: how an encoder's head reads a row; None: at the predicted tokens, as others
    do. ``teacher_VE``: the output head of the teacher that the model learns from, which is not trained.

    The weights belong to ``module`` and change as it trains; the value says only how they are used. Whoever wants other
    kernels makes another value with `dataclasses.replace`, over the same module.
    """

    module: PreTrainedModel
    kernels: Kernels = "transformers"
    plain_head: bool = False
    decoding: StepKernel = "modules"
    sharded: bool = False
    encoder: bool = False
    pooling: Pooling | None = None
    teacher_VE: torch.Tensor | None = None

    @property
    def device(self) -> torch.device:
        where: torch.device = next(self.module.parameters()).device
        return where

    @property
    def decoder(self) -> Any:
        """The module without its output head."""
        return self.module.get_decoder()

    @property
    def head(self) -> torch.nn.Module:
        """The output head: hidden states to logits."""
        head: torch.nn.Module = self.module.get_output_embeddings()
        return head

    @property
    def head_VD(self) -> torch.Tensor:
        """The head's weights: vocabulary by width."""
        weight: torch.Tensor = self.module.get_output_embeddings().weight
        return weight


def of(module: PreTrainedModel, kernels: Kernels = "transformers") -> LanguageModel:
    """A loaded module, in eval mode, as a value."""
    if is_encoder(module.config):
        return LanguageModel(module, encoder=True)
    model = LanguageModel(module, kernels, has_plain_head(module))
    return replace(model, decoding=step_kernel(model)) if model.plain_head else model


def has_plain_head(module: PreTrainedModel) -> bool:
    """Whether logits are just head(hidden): asked of the module itself, because some scale or cap them."""
    head = module.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or getattr(head, "bias", None) is not None:
        return False
    device = head.weight.device
    ids_BT = torch.arange(1, 5, device=device)[None] % module.config.get_text_config().vocab_size
    with torch.no_grad():
        hidden_BTD = module.get_decoder()(ids_BT, use_cache=False).last_hidden_state
        return torch.equal(module(ids_BT, use_cache=False).logits, head(hidden_BTD))


def recompute_layers(module: PreTrainedModel, on: bool) -> None:
    """Whether transformers' own layers keep only their inputs for the backward pass."""
    if on:
        named = getattr(module, "activation_checkpointing_enable", None)  # its newer name
        (named or module.gradient_checkpointing_enable)({"use_reentrant": False})
    else:
        named = getattr(module, "activation_checkpointing_disable", None)
        (named or module.gradient_checkpointing_disable)()
