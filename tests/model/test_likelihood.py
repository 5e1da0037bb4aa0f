"""Likelihoods of given tokens: those of transformers' own logits, whatever shares a pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from build import tiny_lm

from tunewright.model import likelihood
from tunewright.tokens.sequences import TokenSequence, prompt_then_answer


def rows_of(count: int) -> list[TokenSequence]:
    draw = np.random.default_rng(0)
    head = draw.integers(0, 256, 20).tolist()
    return [
        prompt_then_answer(
            [*head, *draw.integers(0, 256, int(draw.integers(1, 9))).tolist()],
            draw.integers(0, 256, int(draw.integers(1, 150))).tolist(),
            i,
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
@pytest.mark.parametrize("kind", ["llama", "gemma2"])  # gemma2 caps its logits: its head is more than a product
def test_nats_are_those_of_the_logits(kind: str, layout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny_lm(kind), rows_of(9)
    monkeypatch.setattr(likelihood, "TOKENS_PER_PASS", 300)
    done: list[int] = []
    actual = likelihood.nats(model, rows, layout, done.append)
    assert sum(done) == 9
    for row, nats in zip(rows, actual, strict=True):
        ids = torch.tensor([row.ids])
        with torch.inference_mode():
            logp_TV = model.module(ids).logits[0].double().log_softmax(-1)
        expected = -sum(float(logp_TV[t - 1, row.ids[t]]) for t in range(len(row.ids)) if row.weights[t])
        assert nats == pytest.approx(expected, rel=1e-5)
