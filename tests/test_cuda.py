"""On a GPU, what the other files test on a CPU. Without a GPU these tests are skipped, and nothing is claimed about
GPUs."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from build import gradients, plan_of, with_adapter

from tunewright.core.config import Kernels
from tunewright.model import fused_llama
from tunewright.model.decoding.generate import Decoding, complete, label_logprobs
from tunewright.tokens import packing
from tunewright.tokens.sequences import TokenSequence, single
from tunewright.train import step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def relatives(count: int = 6) -> list[TokenSequence]:
    draw = torch.Generator().manual_seed(0)
    begin = torch.randint(0, 256, (40,), generator=draw).tolist()
    ends = torch.randint(0, 256, (count, 14), generator=draw).tolist()
    return [TokenSequence((*begin, *e), (*[0.0] * 44, *[1.0] * 10), i) for i, e in enumerate(ends)]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("use_fused", [False, True])
def test_a_shared_step_on_the_gpu_is_that_of_separate_rows_on_the_cpu(kind: str, use_fused: bool) -> None:
    model = with_adapter(kind, torch.float64)
    rows = relatives()
    loss, expected = gradients(model, [packing.to_microbatch([r], "packed") for r in rows])
    model.module.to("cuda")
    fused = use_fused and fused_llama.applies(model.module) and kind != "gemma3_text"
    model = dataclasses.replace(model, kernels="fused" if fused else "transformers")
    actual, grads = gradients(model, [packing.to_microbatch(rows, "shared")])
    assert abs(actual - loss) < 1e-9 * loss
    for name, gradient in expected.items():
        assert torch.allclose(grads[name].cpu(), gradient, atol=1e-9 * float(gradient.abs().max()), rtol=0), name


@pytest.mark.parametrize("kernels", ["transformers", "fused", "flex", "compiled"])
def test_bfloat16_on_the_gpu_trains(kernels: Kernels) -> None:
    wide, narrow = with_adapter("llama", torch.float32), with_adapter("llama", torch.bfloat16)
    with torch.no_grad():
        for a, b in zip(wide.module.parameters(), narrow.module.parameters(), strict=True):
            a.copy_(b)
    narrow.module.to("cuda")
    narrow = dataclasses.replace(narrow, kernels=kernels)
    microbatch = packing.to_microbatch(relatives(), "shared")
    (loss, expected), (actual, grads) = gradients(wide, [microbatch]), gradients(narrow, [microbatch])
    assert abs(actual - loss) < 0.02 * loss
    apart = sum(float((grads[k].cpu() - g).square().sum()) for k, g in expected.items())
    assert apart < 0.02 * sum(float(g.square().sum()) for g in expected.values())


@pytest.mark.parametrize("kernels", ["flex", "compiled"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral"])
def test_flex_attention_gives_the_loss_and_gradients_of_plain_products(kind: str, kernels: Kernels) -> None:
    """In float32, which its kernel has, for passes of several lengths."""
    model = with_adapter(kind, torch.float32, num_key_value_heads=2, head_dim=16)
    model.module.to("cuda")
    for count in (3, 9, 30):
        microbatch = packing.to_microbatch(relatives(count), "shared")
        plain = gradients(dataclasses.replace(model, kernels="fused"), [microbatch])
        loss, grads = gradients(dataclasses.replace(model, kernels=kernels), [microbatch])
        assert abs(loss - plain[0]) < 1e-5 * plain[0]
        for name, gradient in plain[1].items():
            assert torch.allclose(grads[name], gradient, atol=1e-3 * float(gradient.abs().max()), rtol=0), name


@pytest.mark.parametrize("kernels", ["fused", "flex"])
def test_a_step_waits_for_the_gpu_once(kernels: Kernels) -> None:
    """When loss and norm are read."""
    model = with_adapter("llama", torch.float32, head_dim=16)
    model.module.to("cuda")
    plan = plan_of(layout="shared", kernels=kernels, batch_size=6, tokens_per_pass=100)
    learner = step.make_learner(dataclasses.replace(model, kernels=kernels), plan)
    rows = [single(sequence) for sequence in relatives(12)]
    step.take_step(learner, rows, plan, 0)  # compiles, and fills caches
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            step.take_step(learner, rows, plan, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in seen if "synchroniz" in str(w.message)]) == 1


def test_decoding_and_label_scores_on_the_gpu_are_those_of_the_cpu() -> None:
    model = with_adapter("llama", torch.float32)
    asked = [list(r.ids[:45]) for r in relatives()]
    labels = [[[5, 256], [5, 6, 7, 256], [9, 256]]] * len(asked)
    how = Decoding(20, (256,), batch_size=4)
    texts, scores = complete(model, asked, how), label_logprobs(model, asked, labels, how)
    model.module.to("cuda")
    assert complete(model, asked, how) == texts
    assert abs(label_logprobs(model, asked, labels, how) - scores).max() < 1e-3
