"""Attention over a tree of rows in one kernel a layer, on a GPU: torch's FlexAttention.

The tokens of a tree lie depth first. So query q attends to key k if and only if k <= q < end[k], where end[k] is the
first place after the subtree of k's segment; and which blocks of a mask are full, partial or empty follows from the
smallest and largest ``end`` of each block, without ever computing the mask. Axes: T tokens, C blocks of ``BLOCK``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.torch_version import TorchVersion

from tunewright.model.attention.tree import Attend
from tunewright.model.placed import placed
from tunewright.tokens.prefix_tree import Ints, Segment

BLOCK = 128
Places = NDArray[np.int32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class TreeLayout:
    """``end_T``: as above; ``position_T``: in its row. Both have ``padding`` tokens more than the tree, so that there
    are few different lengths: each of them attends to itself alone."""

    end_T: Places
    position_T: Ints
    padding: int


def bucket(length: int) -> int:
    """The length that a pass of so many tokens is padded to: whole blocks, and beyond 1,024 tokens eighths of a power
    of two, so that kernels are compiled for few lengths. At most an eighth is added (below 1,024, a block)."""
    step = max(BLOCK, 1 << (max(length - 1, 1).bit_length() - 4)) if length > 1024 else BLOCK
    return -(-length // step) * step


def layout(segments: Sequence[Segment], position_T: Ints) -> TreeLayout:
    tokens, length = len(position_T), bucket(len(position_T))
    end_T = np.arange(1, length + 1, dtype=np.int32)
    for segment in segments:
        for start, stop in segment.path:
            end_T[start:stop] = segment.stop  # depth first: a later descendant only raises its ancestors' end
    padding = length - tokens
    return TreeLayout(end_T, np.concatenate([position_T, np.zeros(padding, position_T.dtype)]), padding)


def block_mask(tree: TreeLayout, window: int | None, device: torch.device) -> BlockMask:
    """The mask of a tree. ``window``: the sliding window in tokens."""
    end_CB, position_CB = tree.end_T.reshape(-1, BLOCK), tree.position_T.reshape(-1, BLOCK)
    query = np.arange(len(end_CB))[:, None] * BLOCK  # the first of each block
    key = query.T
    some_CC = (end_CB.max(1) > query) & (key <= query)
    full_CC = (end_CB.min(1) > query + BLOCK - 1) & (key < query)
    if window is not None:
        some_CC &= position_CB.min(1)[:, None] - position_CB.max(1) < window
        full_CC &= position_CB.max(1)[:, None] - position_CB.min(1) < window
    limit = window or 0
    end_T, position_T = placed(tree.end_T, device), placed(tree.position_T, device)

    def attended(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (end_T[k] > q)

    def within(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return attended(batch, head, q, k) & (position_T[q] - position_T[k] < limit)

    return BlockMask.from_kv_blocks(
        *_ordered(some_CC & ~full_CC, device),
        *_ordered(full_CC, device),
        BLOCK_SIZE=BLOCK,
        mask_mod=attended if window is None else within,
        seq_lengths=(len(tree.end_T), len(tree.end_T)),
    )


def _ordered(chosen_CC: Bools, device: torch.device) -> tuple[Tensor, Tensor]:
    """As FlexAttention reads a set of blocks: for each block of queries, the number of key blocks, and these first."""
    count_C = chosen_CC.sum(1, dtype=np.int32)
    order_CC = np.argsort(~chosen_CC, axis=1, kind="stable").astype(np.int32)
    return placed(count_C, device)[None, None], placed(order_CC, device)[None, None]


def attend(
    tree: TreeLayout, windows: Iterable[int | None], device: torch.device, kernel: Callable[..., Tensor]
) -> Attend:
    """Attention over a tree whose tokens are padded as `TreeLayout` says, for the layers of `fused_llama`.
    ``windows``: those of the model's layers; ``kernel``: `kernel()`, or what `eager_kernel` says."""
    masks = {window: block_mask(tree, window, device) for window in set(windows)}

    def attended(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mask = masks[getattr(module, "sliding_window", None)]
        out_1HTD: Tensor = kernel(query, key, value, block_mask=mask, scale=module.scaling, enable_gqa=True)
        return out_1HTD.transpose(1, 2)

    return attended


@functools.cache
def kernel() -> Callable[..., Tensor]:
    """FlexAttention, compiled once for all lengths."""
    return torch.compile(eager_kernel, dynamic=True)


# For a layer that is compiled as a whole. By itself it computes and keeps all scores.
eager_kernel: Callable[..., Tensor] = flex_attention


def compiles_layers() -> bool:
    """Whether this torch compiles whole layers correctly: dynamo of 2.11 gives their adapters gradients of zero."""
    return TorchVersion(torch.__version__) >= "2.13"


def supports(head_width: int, device: str) -> bool:
    """Whether the kernel exists: on CUDA, for heads whose width is a power of two from 16 on."""
    return device == "cuda" and head_width >= 16 and head_width.bit_count() == 1
