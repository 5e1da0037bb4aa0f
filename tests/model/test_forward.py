"""Loss and logits of a row: against a computation by hand, in every layout, and whatever else is in the pass."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from build import (
    LORA,
    gradients,
    relatives,
    rows,
    tiny_lm,
    tiny_model,
    with_adapter,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.methods import sft
from tunewright.model import adapters, forward, language_model, loading, losses
from tunewright.tokens import packing, prefix_tree
from tunewright.tokens.sequences import TokenSequence


def test_loss_by_hand() -> None:
    """Softmax, logarithm and shift written out in numpy."""
    model, row = tiny_model(dtype=torch.float64), rows(1)[0]
    with torch.no_grad():
        logits = model(torch.tensor([row.ids])).logits[0].numpy()
    by_hand = 0.0
    for t in range(1, len(row.ids)):
        if row.weights[t]:
            z = logits[t - 1]
            by_hand -= z[row.ids[t]] - (z.max() + math.log(np.exp(z - z.max()).sum()))
    microbatch = packing.to_microbatch([row], "packed")
    total = forward.loss(language_model.of(model), microbatch)
    assert sft.weight(microbatch) == row.supervised
    assert abs(float(total) - by_hand) < 1e-9


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text"])
def test_a_row_alone_equals_the_row_packed_and_padded(kind: str) -> None:
    """Loss and gradients, for three architectures (one with sliding windows shorter than the rows)."""
    data = rows(6, longest=40)
    gradients, totals = [], []
    for layout, groups in (("alone", [[r] for r in data]), ("packed", [data]), ("padded", [data])):
        model = tiny_model(kind, dtype=torch.float64)
        adapters.attach(model, LORA, 1)
        for p in adapters.trainable(model).values():
            torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(p.numel()))
        total = sum(
            (
                forward.loss(
                    language_model.of(model), packing.to_microbatch(g, "padded" if layout == "padded" else "packed")
                )
                for g in groups
            ),
            torch.zeros((), dtype=torch.float64),
        )
        total.backward()
        totals.append(float(total.detach()))
        gradients.append(torch.cat([p.grad.flatten() for p in adapters.trainable(model).values()]))
    for total, gradient in zip(totals[1:], gradients[1:], strict=True):
        assert abs(total - totals[0]) < 1e-8 * totals[0]
        assert torch.allclose(gradient, gradients[0], atol=1e-8 * float(gradients[0].abs().max()), rtol=0)


def test_another_row_in_the_pack_changes_nothing() -> None:
    model = tiny_lm(dtype=torch.float64)
    first, second, third = rows(3)
    logits = [
        forward.logits(model, packing.to_microbatch([first, other], "packed"))[: first.supervised]
        for other in (second, third)
    ]
    assert torch.equal(logits[0], logits[1]) or torch.allclose(logits[0], logits[1], atol=1e-12)


def test_a_leaking_architecture_trains_padded_and_equals_rows_alone() -> None:
    shape = {
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
    }
    model, data = tiny_lm("qwen3_next", **shape), rows(4)
    with torch.no_grad():
        alone = sum(float(forward.loss(model, packing.to_microbatch([r], "padded"))) for r in data)
        padded = float(forward.loss(model, packing.to_microbatch(data, "padded")))
    assert abs(alone - padded) < 1e-4 * alone


SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("qwen3", {}),
    ("gemma3_text", {}),
    ("gemma2", {"head_dim": 8, "num_key_value_heads": 2, "sliding_window": 8, "attn_logit_softcapping": 4.0}),
]


@pytest.mark.parametrize(("kind", "shape"), SHAPES, ids=[k for k, _ in SHAPES])
def test_a_shared_step_is_the_step_of_separate_rows(kind: str, shape: dict[str, Any]) -> None:
    """Loss and every adapter gradient, in float64, for random tries with supervised tokens also in shared prefixes."""
    model = with_adapter(kind, torch.float64, **shape)

    @settings(max_examples=12, deadline=None)
    @given(relatives(longest=30), st.randoms(use_true_random=False))
    def equal(rows: list[Any], random: Any) -> None:
        weights = [tuple(random.choice([0.0, 1.0, 0.5]) for _ in row) for row in rows]
        rendered = [TokenSequence(r, w, i) for i, (r, w) in enumerate(zip(rows, weights, strict=True))]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(prefix_tree, "MIN_SHARED", 2)
            shared = packing.to_microbatch(rendered, "shared")
        alone = [packing.to_microbatch([r], "packed") for r in rendered]
        if not len(shared.target_N):
            return
        (loss, actual), (expected, grads) = (
            gradients(model, [shared]),
            gradients(model, [b for b in alone if len(b.target_N)]),
        )
        assert abs(loss - expected) <= 1e-10 * max(1.0, abs(expected))
        for name, gradient in grads.items():
            assert torch.allclose(actual[name], gradient, atol=1e-10 * max(1.0, float(gradient.abs().max())), rtol=0), (
                name
            )

    equal()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text"])
def test_in_bfloat16_sharing_is_no_less_exact(kind: str) -> None:
    """Over several draws, the gradients of a shared step are no further from float32 than those of separate rows."""
    wide = with_adapter(kind, torch.float32)
    narrow = with_adapter(kind, torch.bfloat16)
    with torch.no_grad():  # both start from exactly the same numbers
        for a, b in zip(wide.module.parameters(), narrow.module.parameters(), strict=True):
            a.copy_(b)
    apart = {"shared": 0.0, "alone": 0.0}
    for seed in range(8):
        draw = torch.Generator().manual_seed(seed)
        begin = torch.randint(0, 256, (40,), generator=draw).tolist()
        ends = torch.randint(0, 256, (6, 12), generator=draw).tolist()
        rows = [TokenSequence((*begin, *e), (*[0.0] * 42, *[1.0] * 10), i) for i, e in enumerate(ends)]
        alone = [packing.to_microbatch([r], "packed") for r in rows]
        _, reference = gradients(wide, alone)
        for name, microbatches in (("shared", [packing.to_microbatch(rows, "shared")]), ("alone", alone)):
            _, actual = gradients(narrow, microbatches)
            apart[name] += sum(float((actual[k] - g).square().sum() / g.square().sum()) for k, g in reference.items())
    assert apart["shared"] <= apart["alone"] * 1.02, apart


def test_a_loaded_model_uses_the_chunked_head_exactly(model_folder: Any) -> None:
    model, data = loading.load(model_folder(), torch.float64), rows(5)
    assert model.plain_head
    microbatch = packing.to_microbatch(data, "packed")
    target_N, weight_N = torch.from_numpy(microbatch.target_N), torch.from_numpy(microbatch.weight_N)
    expected = losses.cross_entropy(forward.logits(model, microbatch), target_N, weight_N)
    assert abs(float(forward.loss(model, microbatch)) - float(expected)) < 1e-9
    padded = packing.to_microbatch(data, "padded")
    assert abs(float(forward.loss(model, padded)) - float(forward.loss(model, microbatch))) < 1e-9
