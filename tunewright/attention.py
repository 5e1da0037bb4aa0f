"""Two attentions behind transformers' AttentionInterface: packed rows in training, a shared prefix in decoding.

The layout comes as keyword arguments of the forward call, so there is no global state, and no mask over a whole pack is
ever built: transformers makes none for an attention it has no mask function for. Axes: H heads, T packed tokens, D head
width, G rows of one bucket, L longest row of the bucket; in decoding B rows, Q new tokens, K own tokens, P prefix tokens.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PACKED, PREFIXED = "tunewright_packed", "tunewright_prefixed"
SHORT = 256
MOST_SCORES = 1 << 25


@dataclass(frozen=True)
class _Bucket:
    """Rows of similar length: where their tokens lie in the pack (rows padded by their last token), and which places are real."""

    take_GL: Tensor
    real: Tensor
    rows: int
    longest: int


@functools.lru_cache(maxsize=64)
def _layout(lengths: tuple[int, ...], device: torch.device) -> tuple[tuple[_Bucket, ...], Tensor]:
    """(buckets, order): concatenating the buckets' real tokens and taking ``order`` gives back the pack."""
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    by_length = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    groups: list[list[int]] = []
    for i in by_length:
        if groups and lengths[i] >= 0.7 * lengths[groups[-1][0]]:
            groups[-1].append(i)
        else:
            groups.append([i])
    buckets, seen = [], []
    for rows in groups:
        longest = lengths[rows[0]]
        steps = torch.arange(longest)
        take = torch.stack([starts[i] + steps.clamp(max=lengths[i] - 1) for i in rows]).flatten()
        real = torch.stack([steps < lengths[i] for i in rows]).flatten().nonzero()[:, 0]
        buckets.append(_Bucket(take.to(device), real.to(device), len(rows), longest))
        seen.append(take[real])
    return tuple(buckets), torch.argsort(torch.cat(seen)).to(device)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    lengths: tuple[int, ...] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query (1, H, T, D), key and value (1, H_kv, T, D) -> (1, T, H, D). ``lengths`` are the rows' tokens, in order."""
    # Raised, not asserted: the probe asks architectures of which some drop the keyword or bring a mask of their own.
    if lengths is None or sum(lengths) != query.shape[2] or attention_mask is not None:
        raise ValueError("the architecture does not hand on the packed layout")
    if softcap is not None or not getattr(module, "is_causal", True):
        raise ValueError("attention that is soft-capped or not causal cannot be packed")
    scale = scaling if scaling is not None else 1 / math.sqrt(query.shape[-1])
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    buckets, order = _layout(lengths, query.device)
    outputs = []
    for bucket in buckets:
        shape = (query.shape[1], bucket.rows, bucket.longest, -1)
        q, k, v = (x[0].index_select(1, bucket.take_GL).view(shape) for x in (query, key, value))
        window = sliding_window if sliding_window is not None and sliding_window < bucket.longest else None
        outputs.append(_rows(q, k, v, scale, dropout, window).flatten(1, 2).index_select(1, bucket.real))
    return torch.cat(outputs, 1).index_select(1, order).transpose(0, 1)[None], None


def _rows(q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float, window: int | None) -> Tensor:
    """(H, G, L, D) -> (H, G, L, D), causal. Short rows by plain products: the CPU flash kernel's backward takes three times as
    long on them (measured on 16 rows of 110 tokens in bfloat16: 52 ms against 18)."""
    longest = q.shape[2]
    if q.device.type == "cpu" and longest <= SHORT:
        scores = (q * scale) @ k.transpose(-1, -2)
        scores = scores.masked_fill(_hidden(longest, window, q.device), float("-inf"))
        weights = scores.softmax(-1, dtype=torch.float64 if scores.dtype == torch.float64 else torch.float32).to(v.dtype)
        return F.dropout(weights, dropout, dropout > 0) @ v
    mask = None if window is None else ~_hidden(longest, window, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scale)


@functools.lru_cache(maxsize=64)
def _hidden(n: int, window: int | None, device: torch.device) -> Tensor:
    back = torch.arange(n, device=device)[:, None] - torch.arange(n, device=device)[None, :]
    return (back < 0) | (back >= window) if window is not None else back < 0


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
    """query (B, H, Q, D), key and value (B, H_kv, K, D) of the rows' own tokens -> (B, Q, H, D); for decoding, without gradient.

    ``prefix``: for each layer the keys and values (H_kv, P, D) that all rows share: held once, and met by all rows in one
    product. ``seen`` (B, Q, K): which own tokens a new token sees; it sees all of the prefix.
    """
    assert seen is not None
    assert attention_mask is None
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
        q = (query[part] * scale).reshape(-1, groups, heads // groups * new, width)
        scores = (q @ key[part].transpose(-1, -2)).reshape(-1, groups, heads // groups, new, own)
        scores = scores.masked_fill(~seen[part, None, None], float("-inf")).flatten(2, 3)
        if prefix:
            k_HPD, v_HPD = prefix[module.layer_idx]
            to_prefix = q.transpose(0, 1).flatten(1, 2) @ k_HPD.transpose(-1, -2)
            scores = torch.cat([to_prefix.unflatten(1, (q.shape[0], -1)).transpose(0, 1), scores], -1)
        weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
        out = weights[..., shared:] @ value[part]
        if prefix:
            out = out + (weights[..., :shared].transpose(0, 1).flatten(1, 2) @ v_HPD).unflatten(1, (q.shape[0], -1)).transpose(
                0, 1
            )
        parts.append(out.reshape(-1, heads, new, width).transpose(1, 2))
    return torch.cat(parts), None


def register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
    AttentionInterface.register(PREFIXED, prefixed_attention)


@contextmanager
def attending(model: Any, name: str) -> Iterator[None]:
    """Within, the model attends as ``PACKED`` or ``PREFIXED``; outside, as it was loaded."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
