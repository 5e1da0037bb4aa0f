"""The forward pass of an encoder: padded rows, each of which sees all of its own tokens and no padding, and their
pooling into one vector a row.

A row's tokens are those up to its last prediction (`to_microbatch` leaves out what follows), so a sequence for an
encoder ends with a place that is not read, and predicts there. Axes: B rows, T tokens, N predicted tokens, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tunewright.model.encoders.folder import Pooling
from tunewright.model.placed import placed
from tunewright.tokens.packing import Microbatch
from tunewright.tokens.prefix_tree import Ints

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def hidden(module: PreTrainedModel, microbatch: Microbatch, device: torch.device) -> Tensor:
    """hidden_ND at the predicted tokens."""
    hidden_BTD, _ = encoded(module, microbatch, device)
    at_N: Tensor = hidden_BTD[placed(microbatch.row_N, device), placed(microbatch.at_N, device)]
    return at_N


def pooled(module: PreTrainedModel, microbatch: Microbatch, device: torch.device, pooling: Pooling) -> Tensor:
    """One vector for each sequence, in the order of the sequences."""
    hidden_BTD, seen_BT = encoded(module, microbatch, device)
    return pool(hidden_BTD, seen_BT, pooling)


def class_logits(module: PreTrainedModel, microbatch: Microbatch, device: torch.device) -> Tensor:
    """logits_NC by a class of transformers that has a head of its own: of each sequence, or at the predicted tokens."""
    logits, _ = encoded(module, microbatch, device)
    if logits.ndim == 2:
        return logits
    return logits[placed(microbatch.row_N, device), placed(microbatch.at_N, device)]


def pool(hidden_BTD: Tensor, seen_BT: Tensor, pooling: Pooling) -> Tensor:
    """pooled_BD: of the first token (cls), of the last that is not padding (last), or the mean over those that are not
    padding, summed in float32 at least (mean)."""
    if pooling == "cls":
        return hidden_BTD[:, 0]
    if pooling == "last":
        last_B = seen_BT.sum(1) - 1
        return hidden_BTD[torch.arange(len(last_B), device=last_B.device), last_B]
    wide_BTD = hidden_BTD if hidden_BTD.dtype == torch.float64 else hidden_BTD.float()
    return wide_BTD.masked_fill(~seen_BT[..., None], 0.0).sum(1) / seen_BT.sum(1, keepdim=True)


def encoded(module: PreTrainedModel, microbatch: Microbatch, device: torch.device) -> tuple[Tensor, Tensor]:
    """(what the module computes first, hidden_BTD of an encoder alone; seen_BT: which tokens are of the row and no
    padding), for rows in the layout "padded"."""
    assert not microbatch.segments, "an encoder's rows are padded"
    rows, longest = microbatch.ids_BT.shape
    length_B = np.zeros(rows, np.int64)
    np.maximum.at(length_B, microbatch.row_N, microbatch.at_N + 1)
    seen_BT = np.arange(longest) < length_B[:, None]
    config = module.config
    ids_BT = np.where(seen_BT, microbatch.ids_BT, getattr(config, "pad_token_id", None) or 0)
    given = {"attention_mask": placed(seen_BT.astype(np.int64), device)}
    if getattr(config, "type_vocab_size", 0) > 1:
        given["token_type_ids"] = placed(token_types(ids_BT, length_B), device)
    first: Tensor = module(placed(ids_BT, device), **given)[0]
    return first, placed(seen_BT, device)


def token_types(ids_BT: Ints, length_B: Ints) -> Ints:
    """1 for the second text of a pair, which follows the first token that ends a text, and 0 elsewhere, as BERT's
    tokenizer has them. Every row ends with the token that ends a text."""
    ends_BT = ids_BT == ids_BT[np.arange(len(ids_BT)), length_B - 1][:, None]
    behind_BT = np.cumsum(ends_BT, 1) - ends_BT > 0
    seen_BT = np.arange(ids_BT.shape[1]) < length_B[:, None]
    types_BT: Ints = (behind_BT & seen_BT).astype(np.int64)
    return types_BT
