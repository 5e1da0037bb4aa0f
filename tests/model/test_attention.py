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

from tunewright.model.attention import prefixed, tree
from tunewright.tokens import prefix_tree


@settings(max_examples=60, deadline=None)
@given(relatives(longest=90), st.sampled_from([None, 7, 64]), st.sampled_from([None, 5.0]), st.booleans())
def test_tree_attention_is_masked_attention(
    rows: list[Any], window: int | None, softcap: float | None, keep: bool
) -> None:
    """Outputs and gradients against a dense mask and autograd, with and without window, soft cap and kept weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_tree, "MIN_SHARED", 2)
        patch.setattr(tree, "LONG", 32)
        patch.setattr(tree, "SHORT", 24)
        tree.blocks.cache_clear()
        folded = prefix_tree.build(rows)
        total = len(folded.ids_T)
        generator = torch.Generator().manual_seed(total)
        leaves = [
            torch.randn(1, h, total, 8, generator=generator, dtype=torch.float64).requires_grad_() for h in (4, 2, 2)
        ]
        given_: dict[str, Any] = {"sliding_window": window, "softcap": softcap, "keep_weights": keep}
        actual, _ = tree.tree_attention(torch.nn.Identity(), *leaves, None, 0.3, segments=folded.segments, **given_)
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


@pytest.mark.parametrize("shared", [0, 17])
@pytest.mark.parametrize("padded", [False, True])
def test_one_token_in_16_bits_attends_as_in_float64(padded: bool, shared: int) -> None:
    """Five rows of two key-value heads; keys in the middle of a larger cache give the bits of keys by themselves."""
    rows, groups, m, used, width = 5, 2, 3, 150, 16
    generator = torch.Generator().manual_seed(shared)
    q = torch.randn(rows * groups, m, width, generator=generator).bfloat16()
    cache = torch.randn(2, rows * groups, used + 40, width, generator=generator).bfloat16()
    held = torch.randn(2, groups, shared, width, generator=generator).bfloat16()
    hidden = torch.zeros(rows, 1, 1, 100, dtype=torch.bool)
    hidden[1, ..., :99], hidden[3, ..., :40] = True, True
    given_ = (hidden if padded else None, (held[0], held[1]) if shared else None)
    key, value = cache.narrow(2, 0, used)
    actual = prefixed.one_token(q, key, value, *given_)
    assert torch.equal(actual, prefixed.one_token(q, key.contiguous(), value.contiguous(), *given_))
    prefix = (held[0].double(), held[1].double()) if shared else None
    expected = prefixed.over_prefix(q.double(), key.double(), value.double(), given_[0], prefix)
    assert torch.allclose(actual.double(), expected, atol=0.02)
    assert not torch.allclose(actual.double(), expected.roll(1, 0), atol=0.02)
