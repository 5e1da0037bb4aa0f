"""The probe finds architectures whose rows cannot share a forward pass."""

from __future__ import annotations

from typing import Any

import pytest
from build import (
    tiny_config,
    tiny_lm,
)

from tunewright.model import arch_probe, forward
from tunewright.tokens import packing
from tunewright.tokens.sequences import TokenSequence


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (
            "mamba2",
            {
                "hidden_size": 32,
                "num_heads": 8,
                "head_dim": 8,
                "expand": 2,
                "n_groups": 1,
                "state_size": 8,
                "num_hidden_layers": 2,
                "vocab_size": 260,
            },
        ),
        (
            "qwen3_next",
            {
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 4,
                "linear_key_head_dim": 8,
                "linear_value_head_dim": 8,
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 16,
                "shared_expert_intermediate_size": 16,
                "layer_types": ["linear_attention", "full_attention"],
                "head_dim": 8,
            },
        ),
    ],
)
def test_an_architecture_that_leaks_fails_the_probe(kind: str, shape: dict[str, Any]) -> None:
    assert all(arch_probe.probe(tiny_config(kind, **shape)).leak.values())


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text"])
def test_architectures_that_do_not_leak_pass_the_probe(kind: str) -> None:
    assert arch_probe.probe(tiny_config(kind)) == arch_probe.Capabilities(
        {"shared": "", "packed": ""}, draws=False, fused=kind != "gemma3_text"
    )


def test_dropout_of_the_model_itself_is_seen_and_forbids_flat_layouts() -> None:
    probed = arch_probe.probe(tiny_config("llama", attention_dropout=0.2))
    assert probed.draws
    model = tiny_lm("llama", attention_dropout=0.2)
    model.module.train()
    with pytest.raises(ValueError, match="drops weights"):
        forward.loss(model, packing.to_microbatch([TokenSequence((1, 2, 3), (0.0, 1.0, 1.0), 0)], "packed"))
