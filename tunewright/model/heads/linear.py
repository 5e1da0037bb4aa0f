"""A linear layer that reads the hidden state of a prompt's last token, or an encoder's pooled hidden states, and gives
a logit for each label.

It is a part of the module, under the name that it has in transformers' own classes for sequence classification, and its
weight is a trainable parameter like others: optimizer, checkpoints and trained weights need not know of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "score"


def attach_head(module: PreTrainedModel, outputs: int) -> None:
    """Put a trainable head of zeros on a language model: before training, all labels are equally probable, and so they
    are where a trained head was lost. The model's own output head, which is not used, is not trained; an encoder has
    none."""
    own, words = module.get_output_embeddings(), module.get_input_embeddings().weight
    if own is not None and own.weight is not words:
        own.weight.requires_grad_(False)
    dtype = torch.float64 if words.dtype == torch.float64 else torch.float32
    head = nn.Linear(width(module), outputs, bias=False, device=words.device, dtype=dtype)
    nn.init.zeros_(head.weight)
    setattr(module, NAME, head)


def width(module: PreTrainedModel) -> int:
    """Of the hidden states that a head reads."""
    own = module.get_output_embeddings()
    return int(module.config.hidden_size if own is None else own.weight.shape[1])


def head_of(module: nn.Module) -> nn.Linear | None:
    """The head of a module, ours or transformers' own, if it has one."""
    head = getattr(module, NAME, None)
    return head if isinstance(head, nn.Linear) else None
