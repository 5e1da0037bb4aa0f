"""The KL from the base model, over the whole vocabulary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from build import tiny_model

from tunewright.core.config import AdapterConfig
from tunewright.model import adapters, kl, language_model
from tunewright.tokens.rendering import TokenSequence


def rows_of(seed: int, count: int = 5) -> list[TokenSequence]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(6, 20, count)
    return [
        TokenSequence(tuple(map(int, rng.integers(3, 60, n))), (0.0, 0.0, *[1.0] * (n - 2)), i)
        for i, n in enumerate(sizes)
    ]


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
def test_divergence_is_the_kl_over_the_whole_vocabulary(layout: Any) -> None:
    model = tiny_model("llama")
    adapters.attach(model, AdapterConfig(rank=4), 0)
    for p in adapters.trainable(model).values():
        torch.nn.init.normal_(p, std=0.05, generator=torch.Generator().manual_seed(p.numel()))
    rows = rows_of(1)
    measured = kl.measure(language_model.of(model), rows, [0.0, 0.5, 1.0], layout)
    assert (measured.kl_SR[0] == 0).all()
    assert (measured.nats_SR[0] == measured.base_nats_R).all()  # at scale 0 the model is the base, bit for bit
    assert (measured.kl_SR[2] > measured.kl_SR[1]).all()
    assert (measured.kl_SR[1] > 0).all()
    row, ids = rows[0], torch.tensor([rows[0].ids])
    with torch.inference_mode():
        with adapters.off(model):
            before = model(ids).logits[0, :-1].float().log_softmax(-1)
        after = model(ids).logits[0, :-1].float().log_softmax(-1)
    at = [t - 1 for t in range(len(row.ids)) if row.weights[t]]
    expected = (before.exp() * (before - after)).sum(-1)[at].sum()
    assert measured.kl_SR[2, 0] == pytest.approx(float(expected), rel=1e-4)
    assert measured.tokens_R[0] == len(at)
