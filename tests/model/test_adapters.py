"""Only the adapter trains, disabling it gives the base, and merging changes nothing."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from build import (
    plan_of,
    rows,
    steps,
    tiny_model,
    train_rows,
)

from tunewright.core.config import AdapterConfig
from tunewright.model import adapters


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_only_the_adapter_trains_and_off_is_the_base_bit_for_bit(kind: str) -> None:
    base, model = tiny_model(), tiny_model()
    config = AdapterConfig(kind=kind, rank=4, dropout=0.1)
    reported = adapters.attach(model, config, 0)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    started = {n: p.detach().clone() for n, p in adapters.trainable(model).items()}
    assert reported.trained == sum(p.numel() for p in started.values())
    steps(model, train_rows(8), plan_of(adapter=config))
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    assert all(not torch.equal(p, started[n]) for n, p in adapters.trainable(model).items())
    ids = torch.tensor([rows(1)[0].ids])
    with torch.no_grad(), adapters.off(model.train()):
        assert torch.equal(model(ids).logits, base.train()(ids).logits)
    with torch.no_grad():
        assert not torch.equal(model.eval()(ids).logits, base.eval()(ids).logits)


def test_an_adapter_is_in_the_mode_of_its_model() -> None:
    """A process that did not train, such as `tunewright chat`, attaches an adapter and evaluates."""
    for training in (False, True):
        model = tiny_model().train(training)
        adapters.attach(model, AdapterConfig(rank=4, dropout=0.5), 0)
        assert {m.training for m in model.modules()} == {training}


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_merged_equals_adapted(kind: str) -> None:
    model = tiny_model(dtype=torch.float64)
    adapters.attach(model, AdapterConfig(kind=kind, rank=4), 0)
    steps(model, train_rows(8), plan_of())
    ids = torch.tensor([rows(1)[0].ids])
    with torch.no_grad():
        before = model.eval()(ids).logits
        adapters.merge(model)
        assert not adapters.adapted(model)
        assert torch.allclose(model(ids).logits, before, atol=1e-10)


def test_patterns_choose_layers_and_a_wrong_one_lists_them() -> None:
    model = tiny_model()
    assert {n.rsplit(".", 1)[-1] for n in adapters.targets(model, ["q_proj", "layers.0.mlp.*"])} == {
        "q_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    assert "lm_head" not in adapters.targets(model, ["all-linear"])
    with pytest.raises(Exception, match=r"LORA_NO_TARGET.*q_proj"):
        adapters.targets(model, ["c_attn"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_switched_off_it_is_the_base_bit_for_bit_also_with_a_bias(
    kind: Literal["lora", "rslora", "dora"], dtype: torch.dtype
) -> None:
    """Qwen2 has biases. Added after the product, a bias is rounded once more."""
    model = tiny_model("qwen2", dtype, num_key_value_heads=1)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(p, std=3.0, generator=torch.Generator().manual_seed(p.numel()))
    ids = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model(ids).logits
        adapters.attach(model, AdapterConfig(kind=kind, rank=4), 0)
        with adapters.off(model):
            assert torch.equal(model(ids).logits, plain)
