"""Losses are sums, and the chunked head equals the head."""

from __future__ import annotations

import pytest
import torch

from tunewright.model import losses


def test_cross_entropy_sums() -> None:
    logits, target = torch.randn(5, 7, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4])
    total = losses.cross_entropy(logits, target, torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0]))
    per = -logits.log_softmax(-1)[torch.arange(5), target]
    assert torch.isclose(total, per[0] + 2 * per[2] + per[3] + per[4])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_chunked_head_equals_all_logits_at_once(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradient, across chunk boundaries."""
    monkeypatch.setattr(losses, "CHUNK", 4)
    draw = torch.Generator().manual_seed(0)
    head = torch.randn(50, 8, generator=draw).to(dtype)
    target, weight = torch.randint(0, 50, (11,), generator=draw), torch.rand(11, generator=draw)
    actual = []
    for way in (
        lambda h: losses.head_cross_entropy(h, head, target, weight),
        lambda h: losses.cross_entropy(h @ head.T, target, weight),
    ):
        hidden = torch.randn(11, 8, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
        total = way(hidden)
        (total / 3).backward()
        actual.append((total.detach(), hidden.grad))
    tolerance = 1e-12 if dtype == torch.float64 else 2e-2
    assert torch.allclose(actual[0][0], actual[1][0], rtol=tolerance)
    assert torch.allclose(actual[0][1], actual[1][1], rtol=tolerance, atol=tolerance)
