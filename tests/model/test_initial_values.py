"""PiSSA and OLoRA: PEFT's own computation, on a base that remains as it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from build import adapter_note, exact_norms, gradients, plan_of, rows, steps, tiny_lm, tiny_model, train_rows

from tunewright.core.config import AdapterConfig
from tunewright.core.errors import TunewrightError
from tunewright.model import adapters, forward, fused_llama, peft_format, several
from tunewright.model.adapting import initial, sizes
from tunewright.model.language_model import LanguageModel
from tunewright.tokens import packing

IDS = torch.tensor([[1, 5, 9, 200, 31, 7, 80]])
EACH = pytest.mark.parametrize("init", ["pissa", "olora"])


def config_of(init: str, **more: Any) -> AdapterConfig:
    return AdapterConfig(**{"init": init, "rank": 4, "alpha": 6.0, **more})


def moved(init: str, kind: str = "llama", dtype: torch.dtype = torch.float64, **more: Any) -> LanguageModel:
    """A model whose adapter is not at its start."""
    model = tiny_lm(kind, dtype=dtype, num_key_value_heads=2)
    if dtype == torch.float64:
        exact_norms(model.module)
    adapters.attach(model.module, config_of(init, **more), 1)
    with torch.no_grad():
        for p in adapters.trainable(model.module).values():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return model


def logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = module(IDS).logits
    return out


def in_peft(init: str, kind: str) -> Any:
    """PEFT's own adapter on the same base, in float64: its A and B, and what is left of the base."""
    import peft

    own = peft.LoraConfig(
        r=4, lora_alpha=6, init_lora_weights=init, use_rslora=kind == "rslora", target_modules="all-linear"
    )
    theirs = peft.get_peft_model(tiny_model(), own, autocast_adapter_dtype=False).double()
    base = tiny_model(dtype=torch.float64)
    with torch.no_grad():
        for name, layer in theirs.get_base_model().named_modules():
            if hasattr(layer, "lora_A"):
                update = layer.lora_B.default.weight @ layer.lora_A.default.weight
                own_weight = base.get_submodule(name).weight
                layer.base_layer.weight.copy_(own_weight - layer.scaling["default"] * update)
    return theirs


@EACH
@pytest.mark.parametrize("kind", ["lora", "rslora"])
def test_initial_values_and_steps_are_pefts(init: str, kind: str) -> None:
    """A and B as PEFT computes them in float32, up to the sign of a singular vector; from the same values, the first
    gradient and five steps in float64."""
    theirs, ours, plan = in_peft(init, kind), tiny_model(dtype=torch.float64), plan_of(lr=1e-2)
    config = config_of(init, kind=kind)
    adapters.attach(ours, config, 0)
    for name, layer in adapters.adapted(ours).items():
        their = theirs.get_submodule(f"base_model.model.{name}")
        a, b = their.lora_A.default.weight.detach(), their.lora_B.default.weight.detach()
        sign = torch.sign((layer.lora_A * a).sum(1))
        assert torch.allclose(sign[:, None] * layer.lora_A, a, atol=2e-5)
        assert torch.allclose(sign * layer.lora_B, b, atol=2e-5)
        layer.begin(a, b)
    parameters = {n.removeprefix("base_model.model."): p for n, p in theirs.named_parameters() if p.requires_grad}
    batch = packing.to_microbatch([r.sequences[0] for r in train_rows(4)], "padded")
    for module in (ours, theirs):
        module.eval().zero_grad()
        forward.loss(LanguageModel(getattr(module, "get_base_model", lambda m=module: m)()), batch).backward()
    for name, p in adapters.trainable(ours).items():
        expected = parameters[f"{name}.default.weight"].grad
        assert torch.allclose(p.grad, expected, atol=1e-9 * float(expected.abs().max()), rtol=0)
    assert torch.allclose(ours(IDS).logits, theirs(IDS).logits, atol=1e-9)
    ours_losses = steps(ours, train_rows(12), plan)
    theirs_losses = steps(theirs.get_base_model(), train_rows(12), plan)
    assert max(abs(x - y) for x, y in zip(ours_losses, theirs_losses, strict=True)) < 1e-7


@EACH
@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_the_start_and_switched_off_the_model_is_the_base(init: str, kind: str, dtype: torch.dtype) -> None:
    """Bit for bit at the start too, except for DoRA's division by a norm; PEFT's, switched off, is another model."""
    base, model = tiny_model(dtype=dtype), tiny_model(dtype=dtype)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters()}
    adapters.attach(model, config_of(init, kind=kind), 0)
    if kind == "lora":
        assert torch.equal(logits(model), logits(base))
    steps(model, train_rows(8), plan_of(adapter=config_of(init, kind=kind)))
    assert not torch.equal(logits(model), logits(base))
    with adapters.off(model):
        assert torch.equal(logits(model), logits(base))
    own = {n.replace(".base.weight", ".weight"): p for n, p in model.named_parameters()}
    assert all(torch.equal(own[n], p) for n, p in frozen.items())


@EACH
def test_the_fused_decoder_and_joint_passes_compute_the_same(init: str) -> None:
    model = moved(init)
    batch = packing.to_microbatch([r.sequences[0] for r in train_rows(5)], "shared")
    loss, expected = gradients(model, [batch])
    assert fused_llama.applies(model.module)
    fused = dataclasses.replace(model, kernels="fused")
    actual, again = gradients(fused, [batch])
    assert abs(actual - loss) < 1e-10 * loss
    assert all(torch.allclose(again[n], g, atol=1e-10 * float(g.abs().max()), rtol=0) for n, g in expected.items())
    others = [moved(other) for other in (init, "zero")]
    hidden = several.hidden([dataclasses.replace(m, kernels="fused") for m in others], [batch, batch], "none")
    for own, hidden_ND in zip(others, hidden, strict=True):
        assert torch.equal(hidden_ND, forward.hidden(dataclasses.replace(own, kernels="fused"), batch))


@EACH
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_peft_loads_it_as_plain_lora(init: str, kind: str, tmp_path: Path) -> None:
    """Without touching its base: switched off, PEFT's model is the base too."""
    from peft import PeftModel

    ours, config = tiny_model(), config_of(init, kind=kind)
    adapters.attach(ours, config, 0)
    steps(ours, train_rows(8), plan_of(adapter=config))
    peft_format.save(ours, config, tmp_path, "base", adapter_note("x"))
    theirs = PeftModel.from_pretrained(tiny_model(), str(tmp_path)).eval()
    assert torch.allclose(logits(theirs), logits(ours), atol=1e-5)
    with theirs.disable_adapter():
        assert torch.equal(logits(theirs), logits(tiny_model()))
    again = tiny_model()
    peft_format.load(again, tmp_path, "x")
    assert torch.allclose(logits(again), logits(ours), atol=1e-6)
    before = logits(ours)
    adapters.merge(ours)
    assert torch.allclose(logits(ours), before, atol=1e-5)


@EACH
def test_a_scale_multiplies_the_update(init: str) -> None:
    """Within, for good, and in the plain form that the server stacks."""
    model = moved(init)
    layer = next(iter(adapters.adapted(model.module).values()))
    base, update = layer.base_weight(), layer.merged_weight() - layer.base_weight()
    with adapters.scaled(model.module, 0.25):
        assert torch.allclose(layer.merged_weight(), base + 0.25 * update, atol=1e-12)
        within = logits(model.module)
    config = config_of(init)
    adapters.scale_in_place(model.module, 0.25)
    assert torch.allclose(logits(model.module), within, atol=1e-10)
    tensors, plain = sizes.as_plain(adapters.update_tensors(model.module), config)
    other = tiny_lm(dtype=torch.float64, num_key_value_heads=2)
    exact_norms(other.module)
    adapters.attach(other.module, plain)
    with torch.no_grad():
        for name, p in adapters.trainable(other.module).items():
            p.copy_(tensors[name])
    assert torch.allclose(logits(other.module), within, atol=1e-10)


def test_large_weights_keep_almost_all_of_their_best_approximation() -> None:
    """Subspace iteration; the spectrum is as flat as that of a language model's weights."""
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(400, 300, generator=generator) * (1 + torch.arange(300) / 60) ** -0.5
    _, exact_R, _ = torch.linalg.svd(weight_OI)
    u_OR, s_R, v_RI = initial.largest(weight_OI, 16, generator)
    assert torch.allclose(u_OR.T @ u_OR, torch.eye(16), atol=1e-4)
    assert torch.allclose(v_RI @ v_RI.T, torch.eye(16), atol=1e-4)
    assert float(s_R.square().sum() / exact_R[:16].square().sum()) > 0.97


PATTERNS: Any = {"rank_pattern": {"q_proj": 2, r"layers\.1\..*_proj": 6}, "alpha_pattern": {"mlp.up_proj": 3.0}}


def with_patterns(dtype: torch.dtype = torch.float32) -> LanguageModel:
    model = tiny_lm(dtype=dtype)
    adapters.attach(model.module, AdapterConfig(kind="rslora", rank=4, alpha=8.0, **PATTERNS), 0)
    for p in adapters.trainable(model.module).values():
        torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(p.numel()))
    return model


def test_ranks_and_alphas_of_layers_are_pefts(tmp_path: Path) -> None:
    """By PEFT's patterns; saved, PEFT loads them; the server stacks them as factors of one rank."""
    from peft import LoraConfig, PeftModel, get_peft_model

    ours, config = with_patterns().module, AdapterConfig(kind="rslora", rank=4, alpha=8.0, **PATTERNS)
    own = LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=sorted(adapters.adapted(ours)), **PATTERNS)
    theirs = get_peft_model(tiny_model(), own)
    for name, layer in adapters.adapted(ours).items():
        their = theirs.get_submodule(f"base_model.model.{name}")
        assert (len(layer.lora_A), layer.scaling) == (their.r["default"], pytest.approx(their.scaling["default"]))
    peft_format.save(ours, config, tmp_path, "base", adapter_note("x"))
    loaded, again, stacked = PeftModel.from_pretrained(tiny_model(), str(tmp_path)).eval(), tiny_model(), tiny_model()
    peft_format.load(again, tmp_path, "x")
    tensors, plain = sizes.as_plain(adapters.update_tensors(ours), config)
    adapters.attach(stacked, plain)
    with torch.no_grad():
        for name, p in adapters.trainable(stacked).items():
            p.copy_(tensors[name])
    for module in (loaded, again, stacked):
        assert torch.allclose(logits(module), logits(ours), atol=1e-5)


def test_layers_of_several_ranks_are_fused() -> None:
    model, batch = with_patterns(torch.float64), packing.to_microbatch(rows(4), "shared")
    exact_norms(model.module)
    assert fused_llama.applies(model.module)
    loss, expected = gradients(model, [batch])
    fused, again = gradients(dataclasses.replace(model, kernels="fused"), [batch])
    assert abs(fused - loss) < 1e-10 * loss
    assert all(torch.allclose(again[n], g, atol=1e-10 * float(g.abs().max()), rtol=0) for n, g in expected.items())


def test_a_pattern_of_no_layer_is_refused() -> None:
    with pytest.raises(TunewrightError, match=r"LORA_NO_TARGET.*'w_proj' matches no adapted layer"):
        adapters.attach(tiny_model(), AdapterConfig(rank=4, rank_pattern={"w_proj": 2}), 0)
