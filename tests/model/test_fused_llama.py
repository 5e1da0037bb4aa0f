"""The fused decoder equals the model's own, and is used only where it does."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from build import (
    LORA,
    gradients,
    tiny_config,
    tiny_model,
    with_adapter,
)

from tunewright.core.config import AdapterConfig
from tunewright.model import adapters, arch_probe, forward, fused_llama
from tunewright.tokens import packing
from tunewright.tokens.sequences import TokenSequence


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_the_fused_decoder_is_the_models_own(kind: str) -> None:
    """Loss and gradients in float64, in a tree, for every kind of gradient checkpointing; without the adapter too."""
    model = with_adapter(kind, torch.float64, num_key_value_heads=2)
    begin = tuple(range(20, 50))
    rows = [
        TokenSequence((*begin, *range(i, 3 * i + 4)), (*[1.0] * 20, *[0.0] * 9, *[1.0] * (2 * i + 5)), i)
        for i in range(5)
    ]
    microbatch = packing.to_microbatch(rows, "shared")
    assert microbatch.ids_BT.size < microbatch.tokens
    loss, expected = gradients(model, [microbatch])
    assert fused_llama.applies(model.module)
    fused = dataclasses.replace(model, kernels="fused")
    ways: list[Any] = ["none", "attention", "layers"]
    for way in ways:
        model.module.zero_grad(set_to_none=True)
        actual = forward.loss(fused, microbatch, way)
        actual.backward()
        assert abs(float(actual.detach()) - loss) < 1e-10 * loss
        for name, p in adapters.trainable(model.module).items():
            assert torch.allclose(p.grad, expected[name], atol=1e-10 * float(expected[name].abs().max()), rtol=0), (
                way,
                name,
            )
    with adapters.off(model.module), torch.no_grad():
        assert abs(float(forward.loss(fused, microbatch)) - float(forward.loss(model, microbatch))) < 1e-10 * loss


def test_the_fused_decoder_is_only_for_models_that_it_computes() -> None:
    probed = {
        kind: arch_probe.probe(tiny_config(kind)).fused
        for kind in ("llama", "qwen3", "gemma3_text", "olmo2", "granite")
    }
    assert probed["llama"]
    assert probed["qwen3"]
    assert not probed["gemma3_text"]
    assert not probed["olmo2"]  # its norms come after the attention
    # Granite multiplies embeddings and residuals by factors of its own, which are 1 unless the config changes them.
    assert probed["granite"]
    assert not arch_probe.probe(tiny_config("granite", residual_multiplier=0.5)).fused
    for config in (
        AdapterConfig(kind="dora", rank=2),
        AdapterConfig(rank=2, dropout=0.1),
        AdapterConfig(rank=2, targets=["q_proj"]),
    ):
        model = tiny_model()
        adapters.attach(model, config, 0)
        assert not fused_llama.applies(model)
    # SmolLM3 has some layers without position embeddings, which does not show with two layers.
    some = tiny_model("smollm3", num_hidden_layers=4, num_key_value_heads=2, no_rope_layers=[1, 1, 1, 0])
    adapters.attach(some, LORA, 0)
    assert not fused_llama.applies(some)
