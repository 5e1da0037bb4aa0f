"""Sharing changes nothing but the time: the trie holds every row, and a shared step is the step of separate rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from build import LORA, gradients, tiny_config, tiny_model, with_adapter
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core.config import AdapterConfig
from tunewright.model import adapters, arch_probe, attention, fused_llama, loading
from tunewright.tokens import packing, prefix_tree
from tunewright.tokens.sequences import Rendered


@st.composite
def relatives(draw: st.DrawFn, most: int = 8, longest: int = 20) -> list[tuple[int, ...]]:
    """Rows of which many begin as another does: equal rows, beginnings of others, branches of any depth."""
    rows: list[tuple[int, ...]] = []
    for _ in range(draw(st.integers(1, most))):
        begun = draw(st.sampled_from(rows)) if rows and draw(st.booleans()) else ()
        kept = begun[: draw(st.integers(0, len(begun)))]
        own = draw(st.lists(st.integers(0, 3), min_size=0 if kept else 1, max_size=longest))
        rows.append((*kept, *own))
    return rows


@settings(max_examples=300, deadline=None)
@given(relatives(), st.sampled_from([1, 3, 16]), st.booleans())
def test_every_row_is_a_path_of_the_tree(rows: list[tuple[int, ...]], share_from: int, share: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_tree, "SHARE_FROM", share_from)
        found = prefix_tree.build(rows, share)
    for row, place in zip(rows, found.place, strict=True):
        assert tuple(found.ids_T[place]) == row
        assert list(found.positions_T[place]) == list(range(len(row)))
    starts = [0, *(s.stop for s in found.segments)]
    assert [s.start for s in found.segments] == starts[:-1]
    assert starts[-1] == len(found.ids_T)
    if not share:
        assert len(found.ids_T) == sum(map(len, rows))
    elif share_from == 1:  # then nothing at all is computed twice
        assert len(found.ids_T) == len({row[: i + 1] for row in rows for i in range(len(row))})


@settings(max_examples=200, deadline=None)
@given(relatives(), st.integers(10, 60), st.sampled_from(["shared", "packed", "padded"]))
def test_passes_hold_every_row_once_and_keep_to_the_capacity(rows: list[Any], capacity: int, layout: Any) -> None:
    groups = packing.microbatches(range(len(rows)), rows, capacity, layout)
    assert sorted(i for g in groups for i in g) == list(range(len(rows)))
    for g in groups:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(prefix_tree, "SHARE_FROM", 1)
            batch = packing.to_batch([Rendered(rows[i], (0.0,) * len(rows[i]), i) for i in g], layout)
        assert batch.ids_BT.size <= capacity or len(g) == 1


@settings(max_examples=60, deadline=None)
@given(relatives(longest=90), st.sampled_from([None, 7, 64]), st.sampled_from([None, 5.0]), st.booleans())
def test_tree_attention_is_masked_attention(rows: list[Any], window: int | None, softcap: float | None, keep: bool) -> None:
    """Against a dense mask and autograd: outputs and gradients, with and without window, soft cap and kept weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_tree, "SHARE_FROM", 2)
        patch.setattr(attention, "LONG", 32)
        patch.setattr(attention, "SHORT", 24)
        attention.pieces.cache_clear()
        folded = prefix_tree.build(rows)
        total = len(folded.ids_T)
        generator = torch.Generator().manual_seed(total)
        leaves = [torch.randn(1, h, total, 8, generator=generator, dtype=torch.float64).requires_grad_() for h in (4, 2, 2)]
        given_: dict[str, Any] = {"sliding_window": window, "softcap": softcap, "keep_weights": keep}
        found, _ = attention.tree_attention(torch.nn.Identity(), *leaves, None, 0.3, segments=folded.segments, **given_)
    seen = torch.zeros(total, total, dtype=torch.bool)
    for segment in folded.segments:
        path = torch.cat([torch.arange(a, b) for a, b in segment.path])
        for t in range(segment.start, segment.stop):
            depth = int(folded.positions_T[t])
            seen[t, path[max(0, depth + 1 - (window or total)) : depth + 1]] = True
    q, k, v = leaves[0], leaves[1].repeat_interleave(2, 1), leaves[2].repeat_interleave(2, 1)
    scores = q @ k.transpose(2, 3) * 0.3
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    expected = (scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v).transpose(1, 2)
    assert torch.allclose(found, expected, atol=1e-12, rtol=0)
    weigh = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((x * weigh).sum(), leaves) for x in (found, expected))
    assert all(torch.allclose(a, b, atol=1e-11, rtol=0) for a, b in zip(ours, theirs, strict=True))


SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("qwen3", {}),
    ("gemma3_text", {}),
    ("gemma2", {"head_dim": 8, "num_key_value_heads": 2, "sliding_window": 8, "attn_logit_softcapping": 4.0}),
]


@pytest.mark.parametrize(("kind", "shape"), SHAPES, ids=[k for k, _ in SHAPES])
def test_a_shared_step_is_the_step_of_separate_rows(kind: str, shape: dict[str, Any]) -> None:
    """Loss and every adapter gradient, float64, random tries; supervised tokens anywhere, in shared beginnings too."""
    model = with_adapter(kind, torch.float64, **shape)

    @settings(max_examples=12, deadline=None)
    @given(relatives(longest=30), st.randoms(use_true_random=False))
    def equal(rows: list[Any], random: Any) -> None:
        weights = [tuple(random.choice([0.0, 1.0, 0.5]) for _ in row) for row in rows]
        rendered = [Rendered(r, w, i) for i, (r, w) in enumerate(zip(rows, weights, strict=True))]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(prefix_tree, "SHARE_FROM", 2)
            shared = packing.to_batch(rendered, "shared")
        alone = [packing.to_batch([r], "packed") for r in rendered]
        if not len(shared.target_N):
            return
        (loss, found), (expected, grads) = gradients(model, [shared]), gradients(model, [b for b in alone if len(b.target_N)])
        assert abs(loss - expected) <= 1e-10 * max(1.0, abs(expected))
        for name, gradient in grads.items():
            assert torch.allclose(found[name], gradient, atol=1e-10 * max(1.0, float(gradient.abs().max())), rtol=0), name

    equal()


def test_the_last_shared_token_predicts_every_branch() -> None:
    """One-token answers: their whole loss sits at the branch point, which other systems drop or mispredict."""
    begin = tuple(range(10, 40))
    rows = [Rendered((*begin, 50 + i), (*[0.0] * 30, 1.0), i) for i in range(4)]
    batch = packing.to_batch(rows, "shared")
    assert batch.ids_BT.size == 30  # a branch of one token is only predicted
    assert list(batch.at_N) == [29] * 4
    assert sorted(batch.target_N) == [50, 51, 52, 53]
    model = with_adapter("llama", torch.float64)
    alone = sum(float(loading.loss(model, packing.to_batch([r], "padded"))[0].detach()) for r in rows)
    assert abs(float(loading.loss(model, batch)[0].detach()) - alone) < 1e-10


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_the_lean_decoder_is_the_models_own(kind: str) -> None:
    """Loss and gradients in float64, in a tree, for every way of computing again; without the adapter too."""
    model = with_adapter(kind, torch.float64, num_key_value_heads=2)
    begin = tuple(range(20, 50))
    rows = [Rendered((*begin, *range(i, 3 * i + 4)), (*[1.0] * 20, *[0.0] * 9, *[1.0] * (2 * i + 5)), i) for i in range(5)]
    batch = packing.to_batch(rows, "shared")
    assert batch.ids_BT.size < batch.tokens
    loss, expected = gradients(model, [batch])
    assert fused_llama.applies(model)
    model.lean = True
    ways: list[Any] = ["none", "attention", "layers"]
    for way in ways:
        model.zero_grad(set_to_none=True)
        found, _ = loading.loss(model, batch, way)
        found.backward()
        assert abs(float(found.detach()) - loss) < 1e-10 * loss
        for name, p in adapters.trainable(model).items():
            assert torch.allclose(p.grad, expected[name], atol=1e-10 * float(expected[name].abs().max()), rtol=0), (way, name)
    with adapters.off(model), torch.no_grad():
        off = float(loading.loss(model, batch)[0])
        model.lean = False
        assert abs(off - float(loading.loss(model, batch)[0])) < 1e-10 * loss


def test_the_lean_decoder_is_only_for_models_that_it_computes() -> None:
    probed = {kind: arch_probe.probe(tiny_config(kind)).fused for kind in ("llama", "qwen3", "gemma3_text", "olmo2", "granite")}
    assert probed["llama"]
    assert probed["qwen3"]
    assert not probed["gemma3_text"]
    assert not probed["olmo2"]  # norms stand behind attention
    # Granite multiplies embeddings and residuals by numbers of its own, which are 1 unless the config says otherwise.
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
    # SmolLM3 leaves some layers without positions, which two layers alone do not show.
    some = tiny_model("smollm3", num_hidden_layers=4, num_key_value_heads=2, no_rope_layers=[1, 1, 1, 0])
    adapters.attach(some, LORA, 0)
    assert not fused_llama.applies(some)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text"])
def test_in_bfloat16_sharing_is_no_less_exact(kind: str) -> None:
    """Distance of gradients from float32, over several draws: a shared step's is no larger than separate rows'."""
    wide = with_adapter(kind, torch.float32)
    narrow = with_adapter(kind, torch.bfloat16)
    with torch.no_grad():  # both start from the very same numbers
        for a, b in zip(wide.parameters(), narrow.parameters(), strict=True):
            a.copy_(b)
    apart = {"shared": 0.0, "alone": 0.0}
    for seed in range(8):
        draw = torch.Generator().manual_seed(seed)
        begin = torch.randint(0, 256, (40,), generator=draw).tolist()
        ends = torch.randint(0, 256, (6, 12), generator=draw).tolist()
        rows = [Rendered((*begin, *e), (*[0.0] * 42, *[1.0] * 10), i) for i, e in enumerate(ends)]
        alone = [packing.to_batch([r], "packed") for r in rows]
        _, reference = gradients(wide, alone)
        for name, batches in (("shared", [packing.to_batch(rows, "shared")]), ("alone", alone)):
            _, found = gradients(narrow, batches)
            apart[name] += sum(float((found[k] - g).square().sum() / g.square().sum()) for k, g in reference.items())
    assert apart["shared"] <= apart["alone"] * 1.02, apart


def test_dropout_of_the_model_itself_is_seen_and_forbids_flat_layouts() -> None:
    probed = arch_probe.probe(tiny_config("llama", attention_dropout=0.2))
    assert probed.draws
    model = tiny_model("llama", attention_dropout=0.2).train()
    with pytest.raises(ValueError, match="drops weights"):
        loading.loss(model, packing.to_batch([Rendered((1, 2, 3), (0.0, 1.0, 1.0), 0)], "packed"))
