"""The one forward pass: hidden states, logits and loss of a `Microbatch`, at the predicted tokens only.

Axes: N predicted tokens, V vocabulary, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tunewright.core.config import Recompute
from tunewright.model import fused_llama, losses
from tunewright.model.attention import flex, interface, tree
from tunewright.model.encoders import passes
from tunewright.model.fused_llama import LayerKernels, Tokens
from tunewright.model.heads.linear import head_of
from tunewright.model.language_model import LanguageModel
from tunewright.model.placed import placed
from tunewright.tokens.packing import Microbatch


def loss(model: LanguageModel, microbatch: Microbatch, recompute: Recompute = "none") -> Tensor:
    """Sum over the predicted tokens of weight * negative log-likelihood, in nats, by the cheapest exact way."""
    target_N, weight_N = on_device(model, microbatch.target_N), on_device(model, microbatch.weight_N)
    if frozen_head(model):
        return losses.head_cross_entropy(hidden(model, microbatch, recompute), model.head_VD, target_N, weight_N)
    return losses.cross_entropy(logits(model, microbatch, recompute), target_N, weight_N)


def logp(
    model: LanguageModel, microbatch: Microbatch, recompute: Recompute = "none", temperature: float = 1.0
) -> Tensor:
    """logp_M: log-probability of every supervised token of every sequence, in the order of the sequences, in nats, of
    predictions at a ``temperature``. The gradient of any function of them is exact, and no logits are kept where the
    head is frozen."""
    target_N = on_device(model, microbatch.target_N)
    one_N = torch.ones(len(target_N), device=model.device)
    if frozen_head(model):
        hidden_ND = hidden(model, microbatch, recompute)
        hidden_ND = hidden_ND if temperature == 1 else hidden_ND / temperature
        nats_N = losses.head_nats(hidden_ND, model.head_VD, target_N, one_N)
    else:
        nats_N = losses.nats(logits(model, microbatch, recompute) / temperature, target_N, one_N)
    return -nats_N[on_device(model, microbatch.prediction_M)]


def sequence_logp(model: LanguageModel, microbatch: Microbatch, recompute: Recompute = "none") -> Tensor:
    """logp_S: log-probability of the supervised tokens of each sequence, summed."""
    parts = torch.split(logp(model, microbatch, recompute), np.bincount(microbatch.sequence_M).tolist())
    return torch.stack([part.sum() for part in parts])  # `index_add` would add in any order on a GPU


def head_logits(model: LanguageModel, microbatch: Microbatch, recompute: Recompute = "none") -> Tensor:
    """logits_NC of the model's head (`heads.linear`), in its own dtype, after the tokens that predict; of an encoder
    that pools, of each row, which then has one prediction."""
    head = head_of(model.module)
    if head is None and model.encoder:
        return passes.class_logits(model.module, microbatch, model.device)
    assert head is not None, "the model has no head"
    if model.pooling is None:
        hidden_ND = hidden(model, microbatch, recompute)
    else:
        hidden_ND = passes.pooled(model.module, microbatch, model.device, model.pooling)
    logits_NC: Tensor = head(hidden_ND.to(head.weight.dtype))
    return logits_NC


def on_device(model: LanguageModel, array: NDArray[np.generic]) -> Tensor:
    """An array where the model is."""
    return placed(array, model.device)


def frozen_head(model: LanguageModel) -> bool:
    """Whether logits are just head(hidden), with a head that is not trained."""
    return model.plain_head and not model.head_VD.requires_grad


def hidden(model: LanguageModel, microbatch: Microbatch, recompute: Recompute = "none") -> Tensor:
    """hidden_ND at the predicted tokens, before the output head."""
    if model.encoder:
        return passes.hidden(model.module, microbatch, model.device)
    if microbatch.segments and model.kernels != "transformers":
        tokens, how = fused_pass(model, microbatch, recompute)
        return fused_llama.hidden(model.decoder, tokens, how, recompute)
    row_N, at_N = on_device(model, microbatch.row_N), on_device(model, microbatch.at_N)
    hidden_ND: Tensor = call_module(model, model.decoder, microbatch, recompute).last_hidden_state[row_N, at_N]
    return hidden_ND


def fused_pass(model: LanguageModel, microbatch: Microbatch, recompute: Recompute) -> tuple[Tokens, LayerKernels]:
    """What `fused_llama.hidden` is given for a flat microbatch."""
    ids_T, positions_T = microbatch.ids_BT[0], microbatch.positions_BT[0]
    layer = fused_llama.called_layer if model.sharded else fused_llama.layer
    if model.kernels == "fused":
        how = LayerKernels(tree.attend(microbatch.segments, keep_weights=recompute == "none"), layer)
    else:
        laid = flex.layout(microbatch.segments, positions_T)
        ids_T, positions_T = np.pad(ids_T, (0, laid.padding)), laid.position_T
        # Layers are compiled for training alone: dynamo cannot trace `_Project` without gradients, and each mode of
        # calling a layer is compiled anew, up to torch's limit.
        whole = model.kernels == "compiled" and torch.is_grad_enabled()
        flexible = flex.eager_kernel if whole else flex.kernel()
        attend = flex.attend(laid, fused_llama.windows(model.decoder.layers), model.device, flexible)
        how = LayerKernels(attend, fused_llama.compiled_layer() if whole else layer)
    return Tokens(*(on_device(model, x) for x in (ids_T, positions_T, microbatch.at_N))), how


def logits(model: LanguageModel, microbatch: Microbatch, recompute: Recompute = "none") -> Tensor:
    """logits_NV of the predicted tokens only: the head never multiplies a token that carries no loss."""
    if microbatch.segments:
        at_N = on_device(model, microbatch.at_N)
        logits_NV: Tensor = call_module(model, model.module, microbatch, recompute, logits_to_keep=at_N).logits[0]
        return logits_NV
    columns, place_N = np.unique(microbatch.at_N, return_inverse=True)
    keep = on_device(model, columns)
    logits_BnV: Tensor = call_module(model, model.module, microbatch, recompute, logits_to_keep=keep).logits
    return logits_BnV[on_device(model, microbatch.row_N), on_device(model, place_N)]


def call_module(
    model: LanguageModel, part: torch.nn.Module, microbatch: Microbatch, recompute: Recompute, **options: Any
) -> Any:
    """Call ``part`` of the model (its decoder, or all of it) on a microbatch, and return transformers' own output.

    A flat microbatch runs under tree attention. A padded one needs no mask: padding is on the right of causal rows.
    """
    ids_BT, positions_BT = on_device(model, microbatch.ids_BT), on_device(model, microbatch.positions_BT)
    if not microbatch.segments:
        return part(ids_BT, position_ids=positions_BT, use_cache=False, **options)
    options |= {"segments": microbatch.segments, "keep_weights": recompute == "none"}
    with interface.attending(model.module, interface.TREE):
        return part(ids_BT, position_ids=positions_BT, use_cache=False, **options)
