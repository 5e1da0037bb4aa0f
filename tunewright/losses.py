"""Losses as (sum, weight), never means: the loop divides once per global step. Axes: N predicted tokens, V vocabulary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits_NV: Tensor, target_N: Tensor, weight_N: Tensor) -> tuple[Tensor, float]:
    """(sum over n of weight_n * -log p(target_n) in nats, sum of weights), in float32 or better."""
    wide = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    loss_N = F.cross_entropy(wide, target_N, reduction="none")
    return (loss_N * weight_N.to(loss_N.dtype)).sum(), float(weight_N.sum())
