"""Attention over a tree of rows, in training: plain matrix products, block by block, on any device and in any dtype.

No mask over a whole pass is ever built. Axes: H heads, G key-value heads, R query heads for each of them, T tokens, D
head width; of a block, m queries and n keys.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tunewright.tokens.prefix_tree import Range, Segment, joined

# A long causal row is split, so that few of the products computed are then masked; small subtrees are merged, because
# a product of few rows costs as much as one of many (benchmarks/NOTES.md).
LONG, SHORT = 256, 128


# How a layer's tokens attend: (its attention module, query_1HTD, key_1GTD, value_1GTD) -> out_1THD.
Attend = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Block:
    """Queries ``start``..``stop``, which attend to the keys of ``above`` and to their own.

    ``runs``: for each segment in the block, its length and the ranges that it continues, counted from the block's
    start; it attends to these, to all of ``above``, and to itself.
    """

    start: int
    stop: int
    above: tuple[Range, ...]
    runs: tuple[tuple[int, tuple[Range, ...]], ...]

    @property
    def ranges(self) -> tuple[Range, ...]:
        """The ranges of all its keys; the last are its own tokens."""
        return joined(self.above, (self.start, self.stop))


@dataclass(frozen=True)
class AttentionOptions:
    """How scores become weights, in all blocks of a layer. ``window``: the sliding window in tokens. ``keep``: keep the
    weights for the backward pass."""

    window: int | None
    softcap: float | None
    keep: bool


@functools.lru_cache(maxsize=64)
def blocks(segments: tuple[Segment, ...]) -> tuple[Block, ...]:
    """The blocks of a tree: long segments are split, small subtrees that continue the same path are merged."""
    merged: list[Block] = []
    for s in segments:
        last = merged[-1] if merged else None
        if last and s.stop - last.start <= SHORT:
            above, within = _split(s.path, last.start, s.start)
            if above == last.above:
                inner = tuple((a - last.start, b - last.start) for a, b in within)
                merged[-1] = Block(last.start, s.stop, above, (*last.runs, (s.stop - s.start, inner)))
                continue
        for start in range(s.start, s.stop, LONG):
            stop = min(start + LONG, s.stop)
            merged.append(Block(start, stop, _split(s.path, start, start)[0], ((stop - start, ()),)))
    return tuple(merged)


def _split(path: tuple[Range, ...], at: int, end: int) -> tuple[tuple[Range, ...], tuple[Range, ...]]:
    """The parts of a path before place ``at`` of the sequence, and from there to ``end``."""
    before = tuple((a, min(b, at)) for a, b in path if a < at)
    return before, tuple((max(a, at), min(b, end)) for a, b in path if b > at and max(a, at) < end)


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: tuple[Segment, ...] = (),
    keep_weights: bool = True,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query (1, H, T, D), key and value (1, G, T, D) -> (1, T, H, D). A token attends to its path in the tree of
    ``segments``."""
    # Raised, not asserted: some architectures that the probe tries drop the keyword or bring a mask of their own.
    if not segments or segments[-1].stop != query.shape[2] or attention_mask is not None:
        raise ValueError("the architecture does not pass on the layout of its rows")
    if dropout or s_aux is not None or not getattr(module, "is_causal", True):
        raise ValueError(
            "attention that drops weights, has sinks or is not causal is not exact for several rows in one pass"
        )
    scale = scaling if scaling is not None else 1 / math.sqrt(query.shape[-1])
    options = AttentionOptions(sliding_window, softcap, keep_weights)
    out: Tensor = _TreeAttention.apply(query, key, value, blocks(segments), scale, options)  # type: ignore[no-untyped-call]
    return out, None


def attend(segments: tuple[Segment, ...], keep_weights: bool) -> Attend:
    """`tree_attention` of these segments, for the layers of `fused_llama`."""

    def attended(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scale, window = cast(float, module.scaling), getattr(module, "sliding_window", None)
        return tree_attention(module, query, key, value, None, scale, 0.0, segments, keep_weights, window)[0]

    return attended


class _TreeAttention(torch.autograd.Function):
    """Piece by block in plain products: on a CPU the flash kernel's backward takes two to fifteen times as long
    (benchmarks/NOTES.md). The heads that share a key-value head are rows of one product."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        todo: tuple[Block, ...],
        scale: float,
        options: AttentionOptions,
    ) -> Tensor:
        groups = key.shape[1]
        q_GTRD = (query[0] * scale).reshape(groups, -1, *query.shape[2:]).transpose(1, 2).contiguous()
        k_GTD, v_GTD = key[0].contiguous(), value[0].contiguous()
        out_TGRD = query.new_empty(query.shape[2], groups, q_GTRD.shape[2], query.shape[3])
        kept = []
        for block in todo:
            weights_Gmn = _weights(q_GTRD, k_GTD, block, options)
            _write(out_TGRD, block, weights_Gmn @ _take(v_GTD, block.ranges))
            if options.keep:
                kept.append(weights_Gmn)
        ctx.save_for_backward(q_GTRD, k_GTD, v_GTD, *kept)
        ctx.given = (todo, scale, options)
        return out_TGRD.flatten(1, 2)[None]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_GTRD, k_GTD, v_GTD, *kept = ctx.saved_tensors
        todo, scale, options = ctx.given
        g_GTRD = grads[0].reshape(q_GTRD.transpose(0, 1).shape).transpose(0, 1).contiguous()
        dq_TGRD = g_GTRD.new_empty(q_GTRD.transpose(0, 1).shape)
        # A prefix gathers the gradients of all its branches: in bfloat16 the small ones would be lost.
        wide = torch.promote_types(k_GTD.dtype, torch.float32)
        dk_GTD, dv_GTD = torch.zeros_like(k_GTD, dtype=wide), torch.zeros_like(v_GTD, dtype=wide)
        for i, block in enumerate(todo):
            weights_Gmn = kept[i] if options.keep else _weights(q_GTRD, k_GTD, block, options)
            g_GmD = g_GTRD[:, block.start : block.stop].flatten(1, 2)
            _add(dv_GTD, block.ranges, weights_Gmn.transpose(1, 2) @ g_GmD)
            to_weights = g_GmD @ _take(v_GTD, block.ranges).transpose(1, 2)
            ds_Gmn = torch._softmax_backward_data(to_weights, weights_Gmn, -1, weights_Gmn.dtype)
            q_GmD = q_GTRD[:, block.start : block.stop].flatten(1, 2)
            k_GnD = _take(k_GTD, block.ranges)
            if options.softcap is not None:
                ds_Gmn *= 1 - torch.tanh(q_GmD @ k_GnD.transpose(1, 2) / options.softcap).square()
            _write(dq_TGRD, block, ds_Gmn @ k_GnD)
            _add(dk_GTD, block.ranges, ds_Gmn.transpose(1, 2) @ q_GmD)
        dq = dq_TGRD.mul_(scale).flatten(1, 2).transpose(0, 1)[None]
        return dq, dk_GTD[None].to(k_GTD.dtype), dv_GTD[None].to(v_GTD.dtype), None, None, None


def _weights(q_GTRD: Tensor, k_GTD: Tensor, block: Block, options: AttentionOptions) -> Tensor:
    """(G, m * R, n): the weight that each query of the block gives to each token of its path."""
    q_GmD = q_GTRD[:, block.start : block.stop].flatten(1, 2)
    scores_Gmn = q_GmD @ _take(k_GTD, block.ranges).transpose(1, 2)
    if options.softcap is not None:
        scores_Gmn = torch.tanh(scores_Gmn / options.softcap) * options.softcap
    own, keys, repeats, device = block.stop - block.start, scores_Gmn.shape[2], q_GTRD.shape[2], q_GTRD.device
    if options.window is not None and options.window < keys:
        scores_Gmn.masked_fill_(_hidden(block.runs, keys - own, options.window, repeats, device), float("-inf"))
    else:
        scores_Gmn[:, :, keys - own :].masked_fill_(_hidden(block.runs, 0, None, repeats, device), float("-inf"))
    wide = torch.promote_types(scores_Gmn.dtype, torch.float32)
    return scores_Gmn.softmax(-1, dtype=wide).to(scores_Gmn.dtype)


@functools.lru_cache(maxsize=1024)
def _hidden(
    runs: tuple[tuple[int, tuple[Range, ...]], ...], above: int, window: int | None, repeats: int, device: torch.device
) -> Tensor:
    """(queries * repeats, above + queries): whether a query must not attend to a key."""
    own = sum(n for n, _ in runs)
    seen_mn = torch.ones(own, above + own, dtype=torch.bool)
    seen_mn[:, above:] = False
    position_n = torch.arange(above + own)
    start = 0
    for n, within in runs:
        queries = slice(start, start + n)
        for a, b in within:
            seen_mn[queries, above + a : above + b] = True
        seen_mn[queries, above + start : above + start + n] = torch.ones(n, n, dtype=torch.bool).tril()
        position_n[above + start : above + start + n] = above + sum(b - a for a, b in within) + torch.arange(n)
        start += n
    if window is not None:
        seen_mn &= position_n[above:, None] - position_n < window
    return (~seen_mn).repeat_interleave(repeats, 0).to(device)


def _take(x_GTD: Tensor, ranges: tuple[Range, ...]) -> Tensor:
    parts = [x_GTD[:, a:b] for a, b in ranges]
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, 1)


def _add(x_GTD: Tensor, ranges: tuple[Range, ...], part_GnD: Tensor) -> None:
    at = 0
    for a, b in ranges:
        x_GTD[:, a:b] += part_GnD[:, at : at + b - a]
        at += b - a


def _write(x_TGRD: Tensor, block: Block, part_GmD: Tensor) -> None:
    x_TGRD[block.start : block.stop] = part_GmD.view(
        len(part_GmD), block.stop - block.start, -1, part_GmD.shape[2]
    ).transpose(0, 1)
