"""Losses as sums over tokens, never means: `train.step` divides once, by the weight of the whole batch.

Axes: N predicted tokens, V vocabulary, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK, CHUNK_NUMBERS = 256, 1 << 28  # rows of logits at a time on a CPU; numbers of them (1 GiB) on a GPU


def nats(logits_NV: Tensor, target_N: Tensor, weight_N: Tensor) -> Tensor:
    """nats_N: weight_n * -log p(target_n), in float32 or better."""
    wide = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    loss_N = F.cross_entropy(wide, target_N, reduction="none")
    return loss_N * weight_N.to(loss_N.dtype)


def cross_entropy(logits_NV: Tensor, target_N: Tensor, weight_N: Tensor) -> Tensor:
    """Sum over n of weight_n * -log p(target_n), in nats, in float32 or better."""
    return nats(logits_NV, target_N, weight_N).sum()


def head_nats(hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, weight_N: Tensor) -> Tensor:
    """`nats` of hidden_ND @ head_VD.T, without ever holding all logits: they are computed in chunks and dropped.

    A token's log p depends on its own hidden state alone, so one vector a token is its whole gradient. It is computed
    while a chunk's logits exist, and makes the gradient of any function of nats_N exact.
    """
    assert not head_VD.requires_grad, "a trained head needs its own gradient: use nats"
    nats_N: Tensor = _HeadNats.apply(hidden_ND, head_VD, target_N, weight_N)  # type: ignore[no-untyped-call]
    return nats_N


def head_cross_entropy(hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, weight_N: Tensor) -> Tensor:
    """`cross_entropy` of hidden_ND @ head_VD.T, by `head_nats`."""
    nats_N = head_nats(hidden_ND, head_VD, target_N, weight_N)
    total = nats_N.new_zeros(())
    for part in torch.split(nats_N, rows_at_once(hidden_ND, head_VD)):
        total = total + part.sum()
    return total


def rows_at_once(hidden_ND: Tensor, head_VD: Tensor) -> int:
    """Rows of logits that exist at a time."""
    return CHUNK if hidden_ND.device.type == "cpu" else max(CHUNK, CHUNK_NUMBERS // len(head_VD))


class _HeadNats(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, weight_N: Tensor) -> Tensor:
        wide = torch.float64 if hidden_ND.dtype == torch.float64 else torch.float32
        weight_N = weight_N.to(wide)
        nats_N = torch.empty(len(target_N), dtype=wide, device=hidden_ND.device)
        grad_ND = torch.empty_like(hidden_ND) if hidden_ND.requires_grad else None
        rows = rows_at_once(hidden_ND, head_VD)
        for start in range(0, len(target_N), rows):
            part = slice(start, start + rows)
            logits_nV = (hidden_ND[part] @ head_VD.T).to(wide)
            at = target_N[part, None]
            norm_n = logits_nV.logsumexp(1, keepdim=True)
            nats_N[part] = (norm_n - logits_nV.gather(1, at))[:, 0] * weight_N[part]
            if grad_ND is not None:
                p_nV = logits_nV.sub_(norm_n).exp_()
                p_nV.scatter_add_(1, at, torch.full_like(norm_n, -1.0))
                grad_ND[part] = (p_nV * weight_N[part, None]).to(head_VD.dtype) @ head_VD
        ctx.save_for_backward(*([grad_ND] if grad_ND is not None else []))
        return nats_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        (grad_ND,) = ctx.saved_tensors
        return grad_ND * grads[0].to(grad_ND.dtype)[:, None], None, None, None


def soft_cross_entropy(logits_NV: Tensor, soft_NK: Tensor, prob_NK: Tensor, weight_N: Tensor) -> Tensor:
    """Sum over n of weight_n * -sum over k of prob_nk * log p(soft_nk), in nats: a teacher's K likeliest tokens and
    their probabilities (Hinton, Vinyals & Dean 2015, 1503.02531). One token of probability 1 is `cross_entropy`."""
    wide = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    logp_NK = wide.log_softmax(-1).gather(1, soft_NK)
    return -((prob_NK.to(wide.dtype) * logp_NK).sum(1) * weight_N.to(wide.dtype)).sum()
