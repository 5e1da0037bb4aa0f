"""FlexAttention over a tree equals the plain products, with torch's own mask as oracle; on a CPU, where only one check
of torch's keeps it from having gradients."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from build import gradients, relatives, with_adapter
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention
from torch.nn.attention.flex_attention import create_block_mask

from tunewright.model import adapters, forward, fused_llama
from tunewright.model.attention import flex, tree
from tunewright.tokens import packing, prefix_tree
from tunewright.tokens.sequences import TokenSequence

CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning"),
    # By dynamo:
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def gradients_on_a_cpu() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex_attention, "_validate_device", lambda *_: None)  # raises if torch renames it
        yield


def folded(rows: list[Any]) -> prefix_tree.Tree:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_tree, "MIN_SHARED", 2)
        return prefix_tree.build(rows)


def long_rows(seed: int) -> list[list[int]]:
    """Some hundreds of tokens: rows that share one, two or no beginnings."""
    draw = np.random.default_rng(seed)
    begin = draw.integers(0, 256, 150).tolist()
    middle = [begin + draw.integers(0, 256, n).tolist() for n in (3, 140)]
    return [(begin, *middle, [])[i % 4] + draw.integers(0, 256, int(draw.integers(5, 90))).tolist() for i in range(9)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([None, 40, 200]))
def test_the_mask_in_closed_form_is_torchs_own(seed: int, window: int | None) -> None:
    rows = folded(long_rows(seed))
    laid = flex.layout(rows.segments, rows.positions_T)
    ours, length = flex.block_mask(laid, window, CPU), len(laid.end_T)
    theirs = create_block_mask(ours.mask_mod, None, None, length, length, device="cpu", BLOCK_SIZE=flex.BLOCK)
    surplus = ours.to_dense() - theirs.to_dense()  # blocks that a window hides, and that we do not rule out
    assert bool((surplus == 0).all() if window is None else (surplus >= 0).all())
    assert torch.equal(ours.full_kv_num_blocks, theirs.full_kv_num_blocks), "as many blocks need no mask"
    for row in rows.place:
        for depth in (0, len(row) // 2, len(row) - 1):
            q, k = torch.tensor(int(row[depth])), torch.arange(length)
            assert (
                ours.mask_mod(k, k, q, k).nonzero()[:, 0].tolist()
                == row[max(0, depth + 1 - (window or length)) : depth + 1].tolist()
            )


@settings(max_examples=25, deadline=None)
@given(relatives(longest=90), st.sampled_from([None, 7, 64]))
def test_outputs_and_gradients_are_those_of_plain_products(rows: list[Any], window: int | None) -> None:
    """In float64, with grouped heads; padding changes nothing."""
    rows_ = folded(rows)
    laid, tokens = flex.layout(rows_.segments, rows_.positions_T), len(rows_.ids_T)
    draw = torch.Generator().manual_seed(tokens)
    leaves = [torch.randn(1, h, tokens, 16, generator=draw, dtype=torch.float64).requires_grad_() for h in (4, 2, 2)]
    weigh = torch.randn(1, tokens, 4, 16, generator=draw, dtype=torch.float64)
    module: Any = SimpleNamespace(scaling=0.3, sliding_window=window, is_causal=True)
    padded = [torch.nn.functional.pad(x, (0, 0, 0, laid.padding), value=3.0) for x in leaves]
    results = []
    flexible = flex.attend(laid, [window], CPU, flex.eager_kernel)
    for out in (tree.attend(rows_.segments, True)(module, *leaves), flexible(module, *padded)):
        results.append([out[:, :tokens], *torch.autograd.grad((out[:, :tokens] * weigh).sum(), leaves)])
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-11, rtol=0)


@given(st.integers(1, 1 << 20))
def test_passes_have_few_lengths(length: int) -> None:
    padded = flex.bucket(length)
    assert padded % flex.BLOCK == 0
    assert length <= padded <= length + max(flex.BLOCK - 1, length / 8 + 1)
    assert flex.bucket(padded) == padded


def test_few_lengths_are_few() -> None:
    assert len({flex.bucket(length) for length in range(1, 16_385)}) == 8 + 8 * 4


@pytest.mark.skipif(not flex.compiles_layers(), reason="needs torch 2.13: see compiles_layers")
@pytest.mark.parametrize("kind", ["qwen3", *(pytest.param(k, marks=pytest.mark.slow) for k in ("llama", "mistral"))])
def test_a_model_computes_the_same_with_layers_compiled(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients of passes of several lengths, and with layers recomputed, against the plain products; not
    compiled again for each."""
    torch.compiler.reset()
    counted = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(fused_llama.layer, backend=counted, fullgraph=True, dynamic=True)
    monkeypatch.setattr(fused_llama, "compiled_layer", lambda: compiled)
    monkeypatch.setattr(flex, "kernel", lambda: flex.eager_kernel)
    model = with_adapter(kind, torch.float32, num_key_value_heads=2, head_dim=16)
    assert fused_llama.applies(model.module)
    for seed, recompute in ((0, "none"), (1, "none"), (2, "layers"), (3, "none"), (4, "none")):
        rows = [TokenSequence(tuple(ids), (0.0, *[1.0] * (len(ids) - 1)), i) for i, ids in enumerate(long_rows(seed))]
        batch = packing.to_microbatch(rows[: 3 + 2 * seed], "shared")
        results = []
        for kernels in ("fused", "flex", "compiled"):
            results.append(gradients(dataclasses.replace(model, kernels=kernels), [batch], recompute))
        (loss, expected), *others = results
        for actual, grads in others:
            assert actual == pytest.approx(loss, rel=1e-6)
            for name, gradient in expected.items():
                assert torch.allclose(grads[name], gradient, atol=2e-5 * float(gradient.abs().max()), rtol=0), name
        with torch.no_grad():
            losses_ = [
                forward.loss(dataclasses.replace(model, kernels=k), batch) for k in ("fused", "flex", "compiled")
            ]
            with adapters.off(model.module):
                assert forward.loss(dataclasses.replace(model, kernels="compiled"), batch) != losses_[0]
        assert torch.allclose(losses_[0].expand(2), torch.stack(losses_[1:]), rtol=1e-6)
    assert counted.frame_count <= 6
