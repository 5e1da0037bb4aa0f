"""Attention of new tokens to their row's own tokens and to a prefix that rows share, in decoding.

Axes: B rows, H heads, G key-value heads, N = B * G, m queries of one of them, Q new tokens, K own tokens, P prefix
tokens, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

MOST_SCORES = 1 << 25


def prefixed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    prefix: Sequence[tuple[Tensor, Tensor]] = (),
    seen: Tensor | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query (B, H, Q, D), key and value (B, H_kv, K, D) of the rows' own tokens -> (B, Q, H, D); for decoding, without
    gradient.

    ``prefix``: for each layer the keys and values (H_kv, P, D) that all rows share: held once, and met by all rows in
    one product. ``seen`` (B, Q, K): which own tokens a new token sees; it sees all of the prefix.
    """
    if seen is None or attention_mask is not None:
        raise ValueError("the architecture does not pass on which tokens are seen")
    if softcap is not None:
        raise ValueError("soft-capped attention cannot share a prefix")
    rows, heads, new, width = query.shape
    groups, own = key.shape[1], key.shape[2]
    shared = prefix[module.layer_idx][0].shape[1] if prefix else 0
    scale = scaling if scaling is not None else 1 / math.sqrt(width)
    together = max(1, MOST_SCORES // (heads * new * (own + shared)))
    parts = []
    for start in range(0, rows, together):
        part = slice(start, start + together)
        q_NmD = (query[part] * scale).reshape(-1, heads // groups * new, width)
        hidden_B1mK = ~seen[part].repeat(1, heads // groups, 1)[:, None]
        held = prefix[module.layer_idx] if prefix else None
        attend = over_prefix if new > 1 else one_token
        out_NmD = attend(q_NmD, key[part].flatten(0, 1), value[part].flatten(0, 1), hidden_B1mK, held)
        parts.append(out_NmD.reshape(-1, heads, new, width).transpose(1, 2))
    return torch.cat(parts), None


def over_prefix(
    q_NmD: Tensor,
    key_NKD: Tensor,
    value_NKD: Tensor,
    hidden_B1mK: Tensor | None,
    prefix: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """out_NmD: scaled queries, m for each key-value head (N = B * G), on the rows' own keys and those of the prefix
    (G, P, D). ``hidden_B1mK``: own tokens that must not be attended to; it may have fewer columns than there are
    tokens, and one row for all queries."""
    scores = torch.bmm(q_NmD, key_NKD.transpose(1, 2))
    if hidden_B1mK is not None:
        scores_BGmK = scores.view(len(hidden_B1mK), -1, *scores.shape[1:])
        scores_BGmK[..., : hidden_B1mK.shape[-1]].masked_fill_(hidden_B1mK, float("-inf"))
    if prefix is not None:
        key_GPD, value_GPD = prefix
        scores = torch.cat([_with_prefix(q_NmD, key_GPD.transpose(1, 2)), scores], -1)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value_NKD.dtype)
    if prefix is None:
        return torch.bmm(weights, value_NKD)
    shared = key_GPD.shape[1]
    return torch.bmm(weights[..., shared:], value_NKD) + _with_prefix(weights[..., :shared], value_GPD)


def one_token(
    q_NmD: Tensor,
    key_NKD: Tensor,
    value_NKD: Tensor,
    hidden_B1mK: Tensor | None,
    prefix: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """`over_prefix` where all queries of a key-value head are of one new token.

    In 16 bits, a matrix product first copies keys and values that are a part of a larger cache, for every token.
    torch's flash kernel does not, and gives the same bits wherever they are.
    """
    if q_NmD.dtype == torch.float32 or q_NmD.device.type != "cpu":
        return over_prefix(q_NmD, key_NKD, value_NKD, hidden_B1mK, prefix)
    mask = None
    rows, m = (1 if hidden_B1mK is None else len(hidden_B1mK)), q_NmD.shape[1]
    if hidden_B1mK is not None:
        mask = q_NmD.new_zeros(rows, 1, hidden_B1mK.shape[2], key_NKD.shape[1])
        mask[..., : hidden_B1mK.shape[-1]].masked_fill_(hidden_B1mK, float("-inf"))
        mask = mask.expand(-1, len(q_NmD) // rows, m, -1)
    q, key, value = (x.view(rows, -1, *x.shape[1:]) for x in (q_NmD, key_NKD, value_NKD))
    flash: Callable[..., tuple[Tensor, Tensor]] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, own = flash(q, key, value, 0.0, False, attn_mask=mask, scale=1.0)
    out_NmD, own_Nm1 = out.reshape(q_NmD.shape), own.reshape(-1, m, 1)
    if prefix is None:
        return out_NmD
    key_GPD, value_GPD = prefix
    scores_NmP = _with_prefix(q_NmD, key_GPD.transpose(1, 2)).float()
    shared_Nm1 = scores_NmP.logsumexp(-1, keepdim=True)
    shared_NmD = _with_prefix((scores_NmP - shared_Nm1).exp().to(q_NmD.dtype), value_GPD)
    part_Nm1 = (shared_Nm1 - own_Nm1).sigmoid()  # of the attention that goes to the prefix
    return (out_NmD * (1 - part_Nm1) + shared_NmD * part_Nm1).to(q_NmD.dtype)


def _with_prefix(x_NmI: Tensor, prefix_GIO: Tensor) -> Tensor:
    """(N, m, O): one product for all rows of a key-value head."""
    groups, m = len(prefix_GIO), x_NmI.shape[1]
    x_GnI = x_NmI.reshape(-1, groups, *x_NmI.shape[1:]).transpose(0, 1).flatten(1, 2)
    return (x_GnI @ prefix_GIO).view(groups, -1, m, prefix_GIO.shape[2]).transpose(0, 1).flatten(0, 1)
