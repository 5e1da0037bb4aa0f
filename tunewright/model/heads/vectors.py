"""Vectors of texts: hidden states of a text, pooled to one and set to length 1.

Axes: S texts, N predicting tokens, M predicting tokens of each text one after another, D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunewright.core.config import Plan, Recompute
from tunewright.model import forward
from tunewright.model.encoders.folder import Pooling
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.packing import Microbatch
from tunewright.tokens.sequences import TokenSequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def pooling(plan: Plan) -> Pooling:
    """Which hidden states become the vector: of a decoder, that of the last token, which alone has read the text."""
    return plan.pooling or "last"


def pooled(text: TokenSequence, how: Pooling) -> TokenSequence:
    """A text (`head_sequence`) whose hidden states are read where ``how`` needs them: as if each predicted the next
    token."""
    if how == "last":
        return text
    return replace(text, weights=(0.0, *[1.0] * (len(text.ids) - 1)))


def of_texts(model: LanguageModel, microbatch: Microbatch, how: Pooling, recompute: Recompute = "none") -> Tensor:
    """vector_SD of texts made by `pooled`, at least in float32."""
    hidden_ND = forward.hidden(model, microbatch, recompute)
    hidden_MD = hidden_ND[forward.on_device(model, microbatch.prediction_M)]
    wide = torch.promote_types(hidden_MD.dtype, torch.float32)
    parts = torch.split(hidden_MD.to(wide), np.bincount(microbatch.sequence_M).tolist())
    if how == "mean":
        state_SD = torch.stack([part.mean(0) for part in parts])  # `index_add` would add in any order on a GPU
    else:
        state_SD = torch.stack([part[0 if how == "cls" else -1] for part in parts])
    return F.normalize(state_SD, dim=1)


def freeze_output_head(module: PreTrainedModel) -> None:
    """Where all weights are trained: those of an output head of its own, which no vector depends on, are not."""
    own = module.get_output_embeddings()
    if own is not None and own.weight is not module.get_input_embeddings().weight:
        own.requires_grad_(False)


def without_dropout(module: nn.Module) -> None:
    """Switch off the base's own dropout for good: what a step computes twice must be the same both times."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        for name, value in list(vars(part).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(part, name, 0.0)
