"""The one forward pass: hidden states, logits and loss of a `Microbatch`, at the predicted tokens only.

Axes: N predicted tokens, V vocabulary, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunewright.core.config import Recompute
from tunewright.model import attention, fused_llama, losses
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.packing import Microbatch


def loss(model: LanguageModel, microbatch: Microbatch, recompute: Recompute = "none") -> Tensor:
    """Sum over the predicted tokens of weight * negative log-likelihood, in nats, by the cheapest exact way."""
    device = model.device
    target_N, weight_N = (
        torch.from_numpy(microbatch.target_N).to(device),
        torch.from_numpy(microbatch.weight_N).to(device),
    )
    if frozen_head(model):
        return losses.head_cross_entropy(hidden(model, microbatch, recompute), model.head_VD, target_N, weight_N)
    return losses.cross_entropy(logits(model, microbatch, recompute), target_N, weight_N)


def frozen_head(model: LanguageModel) -> bool:
    """Whether logits are just head(hidden), with a head that is not trained."""
    return model.plain_head and not model.head_VD.requires_grad


def hidden(model: LanguageModel, microbatch: Microbatch, recompute: Recompute = "none") -> Tensor:
    """hidden_ND at the predicted tokens, before the output head."""
    device = model.device
    row_N, at_N = torch.from_numpy(microbatch.row_N).to(device), torch.from_numpy(microbatch.at_N).to(device)
    if microbatch.segments and model.kernels == "fused":
        ids_T, positions_T = (
            torch.from_numpy(microbatch.ids_BT[0]).to(device),
            torch.from_numpy(microbatch.positions_BT[0]).to(device),
        )
        return fused_llama.hidden(model.decoder, ids_T, positions_T, microbatch.segments, at_N, recompute)
    hidden_ND: Tensor = call_module(model, model.decoder, microbatch, recompute).last_hidden_state[row_N, at_N]
    return hidden_ND


def logits(model: LanguageModel, microbatch: Microbatch, recompute: Recompute = "none") -> Tensor:
    """logits_NV of the predicted tokens only: the head never multiplies a token that carries no loss."""
    at_N = torch.from_numpy(microbatch.at_N).to(model.device)
    if microbatch.segments:
        logits_NV: Tensor = call_module(model, model.module, microbatch, recompute, logits_to_keep=at_N).logits[0]
        return logits_NV
    columns, place_N = torch.unique(at_N, return_inverse=True)
    logits_BnV: Tensor = call_module(model, model.module, microbatch, recompute, logits_to_keep=columns).logits
    return logits_BnV[torch.from_numpy(microbatch.row_N).to(at_N.device), place_N]


def call_module(
    model: LanguageModel, part: torch.nn.Module, microbatch: Microbatch, recompute: Recompute, **options: Any
) -> Any:
    """Call ``part`` of the model (its decoder, or all of it) on a microbatch, and return transformers' own output.

    A flat microbatch runs under tree attention. A padded one needs no mask: padding is on the right of causal rows.
    """
    ids_BT, positions_BT = (torch.from_numpy(x).to(model.device) for x in (microbatch.ids_BT, microbatch.positions_BT))
    if not microbatch.segments:
        return part(ids_BT, position_ids=positions_BT, use_cache=False, **options)
    options |= {"segments": microbatch.segments, "keep_weights": recompute == "none"}
    with attention.attending(model.module, attention.TREE):
        return part(ids_BT, position_ids=positions_BT, use_cache=False, **options)
