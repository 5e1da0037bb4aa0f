"""Batched with a shared prefix = one by one, and both = transformers' own generate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from build import tiny_lm

from tunewright.model.decoding.generate import Decoding, common_prefix, complete, label_logprobs


def prompts(count: int, shared: int, seed: int = 0) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    head = [int(t) for t in draw.integers(0, 256, shared)]
    return [head + [int(t) for t in draw.integers(0, 256, int(draw.integers(1, 12)))] for _ in range(count)]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("shared", [0, 20])
def test_batched_equals_single_equals_transformers(kind: str, shared: int) -> None:
    """Greedy tokens in float32; rows of different lengths finish at different steps; gemma's window is shorter than the
    text."""
    model = tiny_lm(kind)
    asked = prompts(9, shared)
    window = 16 if kind == "gemma3_text" else None
    stop = tuple(range(40))  # many stop tokens, so that rows end at different steps
    batched = complete(model, asked, Decoding(24, stop, batch_size=4, window=window))
    single = complete(model, asked, Decoding(24, stop, batchable=False, window=window))
    assert batched == single
    for ids, actual in zip(asked, batched, strict=True):
        out = model.module.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=list(stop),
            use_cache=True,
        )[0, len(ids) :].tolist()
        assert [t for t in out if t not in stop] == actual
    if not shared:
        assert len({len(f) for f in batched}) > 1


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_label_scores_equal_the_sum_over_the_whole_sequence(kind: str) -> None:
    """Labels of one to four tokens, one of them a prefix of another."""
    model = tiny_lm(kind)
    asked = prompts(5, 12)
    labels = [[5, 256], [5, 6, 7, 256], [9, 256], [10, 11, 256]]
    actual = label_logprobs(
        model, asked, [labels] * 5, Decoding(1, (256,), batch_size=3, window=16 if kind == "gemma3_text" else None)
    )
    for r, ids in enumerate(asked):
        for j, label in enumerate(labels):
            with torch.no_grad():
                logp = model.module(torch.tensor([ids + label])).logits[0].log_softmax(-1)
            expected = sum(float(logp[len(ids) + t - 1, token]) for t, token in enumerate(label))
            assert abs(actual[r, j] - expected) < 1e-4


def test_the_shared_prefix_leaves_every_row_a_token() -> None:
    assert common_prefix([[1, 2, 3], [1, 2, 3]]) == 2
    assert common_prefix([[1, 2, 3], [1, 2]]) == 1
    assert common_prefix([[1], [2]]) == 0
    assert common_prefix([[1, 2, 9, 9], [1, 2, 3, 4], [1, 2, 3, 5]]) == 2


def test_the_limit_cuts_and_an_immediate_stop_is_an_empty_answer() -> None:
    model = tiny_lm()
    assert all(len(a) == 3 for a in complete(model, prompts(4, 0), Decoding(3, (999,))))
    assert complete(model, prompts(4, 0), Decoding(3, tuple(range(260)))) == [[], [], [], []]
