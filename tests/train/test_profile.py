"""The profile counts what is computed and leaves no trace."""

from __future__ import annotations

import pytest
import torch
from build import (
    plan_of,
    rows,
    tiny_lm,
    tiny_model,
    train_rows,
)

from tunewright.core.config import AdapterConfig
from tunewright.model import adapters, forward, fused_llama, language_model
from tunewright.tokens import packing
from tunewright.train import profile


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
def test_the_profile_accounts_for_the_step_and_puts_the_weights_back(layout: str) -> None:
    model = tiny_model()
    adapters.attach(model, AdapterConfig(rank=4), 0)
    fused = layout == "shared" and fused_llama.applies(model)
    before = {n: p.detach().clone() for n, p in adapters.trainable(model).items()}
    actual = profile.measure(
        language_model.LanguageModel(model, "fused" if fused else "transformers", plain_head=True),
        train_rows(8),
        plan_of(layout=layout),
        peak_gflops=100.0,
    )
    assert all(torch.equal(p, before[n]) for n, p in adapters.trainable(model).items())
    assert actual.seconds_by_kind["matrix products"] > 0
    assert abs(sum(actual.seconds_by_kind.values()) - actual.seconds) < 0.01 * actual.seconds + 1e-3
    assert actual.of_peak == pytest.approx(actual.gflop / actual.seconds / 100.0, abs=3e-4, rel=1e-2)
    assert len(profile.lines(actual)) >= 8


def test_flops_are_those_that_torch_counts() -> None:
    """The formula against torch's own counter, which sees every matrix product of a forward and backward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny_lm(hidden_size=64, intermediate_size=128)
    adapters.attach(model.module, AdapterConfig(rank=4), 0)
    microbatch = packing.to_microbatch(rows(1, longest=60), "packed")
    with FlopCounterMode(display=False) as counter:
        forward.loss(model, microbatch).backward()
    tokens_, square = microbatch.ids_BT.size, microbatch.ids_BT.size**2
    # torch counts the full square, half of which the mask hides; the first layer's input needs no gradient.
    expected = profile.flops(model, tokens_, square, len(microbatch.target_N))
    assert 0.85 < counter.get_total_flops() / expected < 1.05
