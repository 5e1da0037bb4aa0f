"""The adapters that PEFT computes: what is asked of ours is asked of each of them."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from build import adapter_note, gradients, plan_of, rows, steps, tiny_config, tiny_lm, tiny_model, train_rows

from tunewright.core import config as settings
from tunewright.core.config import AdapterConfig, PeftKind
from tunewright.core.config.adapter_kinds import REFUSED_KINDS
from tunewright.core.errors import TunewrightError
from tunewright.model import adapters, arch_probe, fused_llama, peft_format
from tunewright.model.adapting import peft_kinds
from tunewright.tokens import packing
from tunewright.train import checkpoints

IDS = torch.tensor([[1, 5, 9, 200, 31, 7, 80]])
# PEFT's defaults are for layers wider than 32.
OPTIONS: dict[str, dict[str, Any]] = {
    "peft:c3a": {"block_size": 8},
    "peft:fourierft": {"n_frequency": 50},
    "peft:oft": {"oft_block_size": 8},
    "peft:road": {"group_size": 8},
    "peft:waveft": {"n_frequency": 50},
}
FAST = ("peft:ia3", "peft:lokr", "peft:oft", "peft:vera")
KINDS = [k if k in FAST else pytest.param(k, marks=pytest.mark.slow) for k in get_args(PeftKind)]


def config_of(kind: Any) -> AdapterConfig:
    return AdapterConfig(kind=kind, rank=4, alpha=8.0, options=OPTIONS.get(kind, {}))


def logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = module(IDS).logits
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_is_switched_off_saved_loaded_and_merged(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    base, model, config = tiny_model(), tiny_model(), config_of(kind)
    adapters.attach(model, config, 0)
    assert torch.allclose(logits(model), logits(base), atol=1e-5)
    started = {n: p.detach().clone() for n, p in adapters.trainable(model).items()}
    steps(model, train_rows(8), plan_of(adapter=config, lr=0.02, steps=3))
    assert any(not torch.equal(p, started[n]) for n, p in adapters.trainable(model).items())
    with adapters.off(model):
        assert torch.equal(logits(model), logits(base))
    with adapters.detached(model):
        assert torch.equal(logits(model), logits(base))
    trained = logits(model)
    assert not torch.equal(trained, logits(base))
    # All that it is made of is in what is saved: another seed has other values everywhere else.
    other = tiny_model()
    adapters.attach(other, config, 5)
    checkpoints.save_weights(tmp_path / "weights", adapters.update_tensors(model))
    checkpoints.load_weights(tmp_path / "weights", adapters.update_tensors(other))
    assert torch.equal(logits(other), trained)
    adapters.initialise(other, config, 0)
    assert all(torch.equal(p, started[n]) for n, p in adapters.trainable(other).items())
    peft_format.save(model, config, tmp_path, "base", adapter_note("x"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(tiny_model(), str(tmp_path)).eval()
    assert torch.allclose(logits(theirs), trained, atol=1e-5)
    again = tiny_model()
    peft_format.load(again, tmp_path, "x")
    assert torch.allclose(logits(again), trained, atol=1e-5)
    with pytest.raises(TunewrightError, match="ADAPTER_BASE_MISMATCH"):
        peft_format.load(tiny_model(), tmp_path, "another")
    adapters.merge(model)
    assert torch.allclose(logits(model), trained, atol=2e-5)
    assert not adapters.of_peft(model)
    assert {n for n, _ in model.named_parameters()} == {n for n, _ in base.named_parameters()}


@pytest.mark.parametrize("kind", ["peft:loha", "peft:vera", "peft:miss"])
def test_rows_with_a_common_prefix_have_the_gradient_of_rows_alone(kind: str) -> None:
    model = tiny_lm()
    adapters.attach(model.module, config_of(kind), 0)
    for p in adapters.trainable(model.module).values():
        p.data += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    batches = {layout: packing.to_microbatch(rows(5), layout) for layout in ("shared", "padded")}
    loss, expected = gradients(model, [batches["padded"]])
    shared, actual = gradients(model, [batches["shared"]])
    assert abs(shared - loss) < 1e-4 * loss
    assert all(torch.allclose(actual[n], g, atol=1e-3 * float(g.abs().max()), rtol=0) for n, g in expected.items())
    assert not fused_llama.applies(model.module)


def test_the_probe_has_the_adapter_and_asks_peft_early() -> None:
    probed = arch_probe.probe(tiny_config("llama"), config_of("peft:loha"))
    assert probed.leak == {"shared": "", "packed": ""}
    assert not probed.fused
    # PEFT prints that it takes another size, and warns that the model would not begin as the base.
    for given, why in (
        (AdapterConfig(kind="peft:oft", options={"oft_block_size": 7}), r"oft: Invalid `oft_block_size` \(7\)"),
        (AdapterConfig(kind="peft:hra", rank=3), "hra: .* r is odd"),
        (AdapterConfig(kind="peft:c3a", options={"block_size": 7}), "c3a: "),
    ):
        with pytest.raises(TunewrightError, match=rf"CONFIG_CONFLICT.*PEFT refuses {why}"):
            arch_probe.probe(tiny_config("llama"), given)


def test_an_adapter_that_leaks_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe, not a list of kinds, decides."""
    from peft.tuners.loha.layer import LoHaLayer

    plain = LoHaLayer.forward

    def leaking(self: Any, x: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        out: torch.Tensor = plain(self, x, *given, **named)
        return out + 0.3 * x[..., :1].mean(-2, True)

    monkeypatch.setattr(LoHaLayer, "forward", leaking)
    assert "rows see each other" in arch_probe.probe(tiny_config("llama"), config_of("peft:loha")).leak["shared"]


def test_a_field_that_peft_lacks_is_named() -> None:
    for options in ({"ranks": 3}, {"rank_dropout": 0.1}, {"bias": "all"}, {"r": 3}, {"init_weights": False}):
        with pytest.raises(TunewrightError, match=r"CONFIG_UNKNOWN_KEY.*LoKrConfig has no field.*decompose_factor"):
            peft_kinds.attach(
                tiny_model(), AdapterConfig(kind="peft:lokr", options=options), ["model.layers.0.mlp.up_proj"], 0
            )


REFUSED = [
    ({"kind": "peft:loha", "dropout": 0.1}, {}, "adapter.dropout", "does not read"),
    ({"kind": "peft:ia3", "rank": 4}, {}, "adapter.rank", "does not read"),
    ({"kind": "peft:vera", "alpha": 4.0}, {}, "adapter.alpha", "does not read"),
    ({"kind": "peft:loha", "init": "pissa"}, {}, "adapter.init", "does not read"),
    ({"kind": "peft:loha", "loraplus_lr_ratio": 4.0}, {}, "adapter.loraplus_lr_ratio", "does not read"),
    ({"kind": "peft:loha", "start": "x"}, {}, "adapter.start", "does not read"),
    ({"options": {"a": 1}}, {}, "adapter.options", "does not read"),
    ({"kind": "none", "init": "pissa"}, {}, "adapter.kind", "no effect"),
    ({"start": "x", "rank": 16}, {}, "adapter.rank", "taken from the adapter"),
    ({"start": "x", "init": "pissa"}, {}, "adapter.init", "taken from the adapter"),
    ({"kind": "peft:oft"}, {"forget__scales": [0.5]}, "forget.scales", "may not"),
    ({"kind": "peft:oft"}, {"forget__apply_best_scale": True}, "forget.scales", "may not"),
    ({"kind": "peft:oft"}, {"quantise": "nf4"}, "quantise", "dense"),
    ({"kind": "peft:oft"}, {"train__dtype": "bfloat16"}, "train.dtype", "float32"),
    ({"kind": "peft:oft"}, {"train__fsdp": True}, "train.fsdp", "in one piece"),
]


@pytest.mark.parametrize(("adapter", "more", "key", "why"), REFUSED)
def test_what_cannot_work_is_refused(adapter: dict[str, Any], more: dict[str, Any], key: str, why: str) -> None:
    with pytest.raises(TunewrightError) as caught:
        settings.load(None, **{f"adapter__{k}": v for k, v in adapter.items()}, **more)
    assert (caught.value.code, caught.value.where) == ("CONFIG_CONFLICT", key)
    assert why in str(caught.value)


@pytest.mark.parametrize("kind", REFUSED_KINDS)
def test_kinds_that_are_not_offered_are_refused_with_the_reason(kind: str) -> None:
    with pytest.raises(TunewrightError, match=rf"CONFIG_RANGE.*{re.escape(REFUSED_KINDS[kind])}"):
        settings.load(None, adapter__kind=kind)


@pytest.mark.parametrize(
    "adapter", [{"kind": "peft:ia3"}, {"kind": "peft:lokr", "rank": 3}, {"init": "olora"}, {"start": "/x"}]
)
def test_a_config_is_read_as_it_was_written(adapter: dict[str, Any], tmp_path: Path) -> None:
    written = settings.load(None, **{f"adapter__{k}": v for k, v in adapter.items()})
    (tmp_path / "config.yaml").write_text(settings.to_yaml(written))
    assert settings.load(tmp_path / "config.yaml") == written
