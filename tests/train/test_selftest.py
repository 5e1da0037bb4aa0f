"""The self-test passes on valid models, leaves no trace, falls back where a fast way of computing is wrong, and aborts
if none is right."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from build import byte_tokenizer, plan_of, tiny_model

from tunewright.core.config import AdapterConfig
from tunewright.core.errors import TunewrightError
from tunewright.data.messages import Chat, Message
from tunewright.methods import sft
from tunewright.model import adapters, fused_llama
from tunewright.model.attention import interface
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.sequences import TrainRow, flat, single
from tunewright.tokens.template import Template
from tunewright.train import selftest

TEMPLATE = Template(byte_tokenizer())


def chats(count: int = 6) -> list[Chat]:
    printed = ("user", "assistant", "user", "assistant")
    return [
        Chat(tuple(Message(r, f"{r} {i} says {'x' * (i * k)}") for k, r in enumerate(printed)), f"a.jsonl:{i + 1}")
        for i in range(count)
    ]


def world(kind: str = "lora", **plan: Any) -> tuple[LanguageModel, list[Chat], list[TrainRow], Any]:
    interface.register()
    module = tiny_model()
    module.config.get_text_config().use_cache = False
    config = AdapterConfig(kind="none") if kind == "none" else AdapterConfig(kind=kind, rank=4)  # type: ignore[arg-type]
    adapters.attach(module, config, 0)
    module.generation_config.eos_token_id = TEMPLATE.eos
    fused = kind == "lora" and fused_llama.applies(module)
    model = LanguageModel(module, "fused" if fused else "transformers", plain_head=True)
    rows = [r for i, e in enumerate(chats()) for r in sft.prepare(TEMPLATE, e, i, None)]
    settings = {"layout": "shared", "kernels": model.kernels, "adapter": config, **plan}
    return model, chats(), rows, plan_of(**settings)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "none"])
def test_a_sound_model_passes_and_is_left_as_it_was(kind: str) -> None:
    model, examples, rows, plan = world(kind)
    before = {n: p.detach().clone() for n, p in model.module.named_parameters()}
    done = run(model, examples, rows, plan)
    assert done.plan == plan
    assert all(f.passed for f in done.checks)
    checks = ["prompts", "stops", *(["base"] if kind != "none" else []), "gradient", "loss and gradient"]
    assert [f.check for f in done.checks] == checks
    assert all(torch.equal(p, before[n]) for n, p in model.module.named_parameters())
    assert all(p.grad is None for p in model.module.parameters())


def run(model: LanguageModel, examples: list[Chat], rows: list[TrainRow], plan: Any) -> selftest.SelfTestResult:
    return selftest.self_test(model, TEMPLATE, examples, rows, plan)


def test_rows_that_do_not_begin_as_served_are_refused() -> None:
    model, examples, rows, plan = world()
    moved = [single(dataclasses.replace(s, weights=(*s.weights[1:], 0.0))) for s in flat(rows)]
    with pytest.raises(TunewrightError, match=r"SELFTEST_PROMPT.*a.jsonl"):
        run(model, examples, moved, plan)


def test_an_end_at_which_nothing_stops_is_refused() -> None:
    model, examples, rows, plan = world()
    open_ended = []
    for s in flat(rows):
        w = list(s.weights)
        for _, end in selftest.supervised_spans(s):
            w[end - 1] = 0.0
        open_ended.append(single(dataclasses.replace(s, weights=tuple(w))))
    with pytest.raises(TunewrightError, match="SELFTEST_STOP"):
        run(model, examples, open_ended, plan)


def test_a_base_that_was_changed_in_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples, rows, plan = world()
    plain = adapters.LoRALinear.forward

    def leaking(self: Any, x: torch.Tensor) -> torch.Tensor:  # a disabled adapter that still adds a little
        return plain(self, x) + (0.0 if self.on else 1e-6)

    monkeypatch.setattr(adapters.LoRALinear, "forward", leaking)
    with pytest.raises(TunewrightError, match="SELFTEST_BASE"):
        run(model, examples, rows, plan)


def test_an_adapter_that_gets_no_gradient_is_refused() -> None:
    model, examples, rows, plan = world()
    layer = next(iter(adapters.adapted(model.module).values()))
    layer.lora_A.register_hook(torch.zeros_like)
    with pytest.raises(TunewrightError, match=r"SELFTEST_GRADIENT.*lora_A"):
        run(model, examples, rows, plan)


def test_wrong_kernels_fall_back_to_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples, rows, plan = world()
    norm = fused_llama.rms_norm
    monkeypatch.setattr(fused_llama, "rms_norm", lambda part, x: norm(part, x) * 1.05)
    done = run(model, examples, rows, plan)
    after, actual = done.plan, done.checks
    assert (after.kernels, after.layout) == ("transformers", "shared")
    assert not actual[-1].passed
    assert "own modules" in actual[-1].result
    assert "fused kernels" in after.reasons["kernels"]


def test_rows_that_see_each_other_fall_back_to_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples, rows, plan = world(layout="packed", kernels="transformers")

    def everyone(ids: Any, shared: bool = False) -> Any:  # as one document instead of one per row
        folded = build([[t for row in ids for t in row]], False)
        place, at = [], 0
        for row in ids:
            place.append(folded.place[0][at : at + len(row)])
            at += len(row)
        return dataclasses.replace(folded, place=place)

    from tunewright.tokens import packing
    from tunewright.tokens.prefix_tree import build

    monkeypatch.setattr(packing, "build", everyone)
    done = run(model, examples, rows, plan)
    after, actual = done.plan, done.checks
    assert after.layout == "padded"
    assert "packed rows" in after.reasons["layout"]
    assert after.reasons.get("kernels") == plan.reasons.get("kernels")
    assert not actual[-1].passed


def test_an_adapter_that_the_fused_kernels_do_not_support_keeps_the_models_own() -> None:
    """For example dropout, which the fused kernels would omit."""
    model, examples, rows, plan = world(layout="packed", kernels="fused")
    model = dataclasses.replace(model, kernels="transformers")
    done = run(model, examples, rows, plan)
    after, actual = done.plan, done.checks
    assert after.kernels == "transformers"
    assert actual[-1].passed


def test_where_no_way_is_right_the_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples, rows, plan = world()
    plain = sft.microbatches

    def shifted(*given: Any) -> Any:  # wrong targets in microbatches of several rows
        return [
            dataclasses.replace(b, target_N=(b.target_N + 1) % 250) if b.sequence_M.max() else b for b in plain(*given)
        ]

    monkeypatch.setattr(sft, "microbatches", shifted)
    with pytest.raises(TunewrightError, match="SELFTEST_LOSS"):
        run(model, examples, rows, plan)


def test_the_reference_keeps_as_little_as_the_plan_does() -> None:
    """Else the self-test of a large model would need the memory that its plan avoids."""
    model, _, rows, plan = world()
    results = []
    for recompute in ("none", "layers"):
        kept: list[int] = []

        def keep(tensor: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            asked = plan.model_copy(update={"gradient_checkpointing": recompute})
            results.append((selftest.loss_and_gradient(model, rows, asked, "padded", "transformers"), sum(kept)))
    (plain, all_kept), (recomputed, _) = results
    assert recomputed.loss == plain.loss
    assert all(torch.equal(recomputed.gradient[name], g) for name, g in plain.gradient.items())
    assert all_kept > 0
    assert not any(part.training for part in model.module.modules())
