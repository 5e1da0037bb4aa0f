"""Tree attention against a dense mask and autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from build import (
    relatives,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.model import attention
from tunewright.tokens import prefix_tree


@settings(max_examples=60, deadline=None)
@given(relatives(longest=90), st.sampled_from([None, 7, 64]), st.sampled_from([None, 5.0]), st.booleans())
def test_tree_attention_is_masked_attention(
    rows: list[Any], window: int | None, softcap: float | None, keep: bool
) -> None:
    """Outputs and gradients against a dense mask and autograd, with and without window, soft cap and kept weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_tree, "MIN_SHARED", 2)
        patch.setattr(attention, "LONG", 32)
        patch.setattr(attention, "SHORT", 24)
        attention.blocks.cache_clear()
        folded = prefix_tree.build(rows)
        total = len(folded.ids_T)
        generator = torch.Generator().manual_seed(total)
        leaves = [
            torch.randn(1, h, total, 8, generator=generator, dtype=torch.float64).requires_grad_() for h in (4, 2, 2)
        ]
        given_: dict[str, Any] = {"sliding_window": window, "softcap": softcap, "keep_weights": keep}
        actual, _ = attention.tree_attention(
            torch.nn.Identity(), *leaves, None, 0.3, segments=folded.segments, **given_
        )
    seen = torch.zeros(total, total, dtype=torch.bool)
    for segment in folded.segments:
        path = torch.cat([torch.arange(a, b) for a, b in segment.path])
        for t in range(segment.start, segment.stop):
            depth = int(folded.positions_T[t])
            seen[t, path[max(0, depth + 1 - (window or total)) : depth + 1]] = True
    q, k, v = leaves[0], leaves[1].repeat_interleave(2, 1), leaves[2].repeat_interleave(2, 1)
    scores = q @ k.transpose(2, 3) * 0.3
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    expected = (scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v).transpose(1, 2)
    assert torch.allclose(actual, expected, atol=1e-12, rtol=0)
    weigh = torch.randn(actual.shape, generator=generator, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((x * weigh).sum(), leaves) for x in (actual, expected))
    assert all(torch.allclose(a, b, atol=1e-11, rtol=0) for a, b in zip(ours, theirs, strict=True))
