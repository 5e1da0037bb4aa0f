"""Samples: whatever else is drawn, a sample is a function of (seed, step, row, sample), and its log-probabilities are
those of training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from build import tiny_lm, with_adapter
from scipy import stats

from tunewright.core.sampling import GREEDY
from tunewright.model import forward
from tunewright.model.decoding import generate, sample
from tunewright.model.decoding.generate import Decoding
from tunewright.model.decoding.sample import Draw
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.packing import to_microbatch
from tunewright.tokens.sequences import prompt_then_answer

PROMPTS = [(4, [5, 6, 7]), (9, [5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]), (2, [1, 2]), (0, [5, 6, 7, 8, 9])]

DRAW = Draw(7, 2)


def how(**more: Any) -> Decoding:
    return Decoding(**{"max_new_tokens": 12, "stop": (3, 256), "batch_size": 64, **more})


def drawn(model: LanguageModel, prompts: Any = PROMPTS, count: int = 6, draw: Draw = DRAW, **more: Any) -> Any:
    groups = sample.sample(model, prompts, count, how(**more), draw)
    return {(row, n): s for (row, _), group in zip(prompts, groups, strict=True) for n, s in enumerate(group)}


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text"])
def test_a_sample_does_not_depend_on_what_else_is_drawn(kind: str) -> None:
    model = tiny_lm(kind, vocabulary=300)
    window = 16 if kind == "gemma3_text" else None
    together = drawn(model, window=window)
    assert len({s.ids for s in together.values()}) > len(together) / 2
    for other in (
        drawn(model, PROMPTS[::-1], window=window),
        drawn(model, window=window, batch_size=1),
        drawn(model, window=window, batchable=False),
        drawn(model, PROMPTS[1:3], window=window),
        drawn(model, count=2, window=window),
    ):
        for key, s in other.items():
            assert s.ids == together[key].ids
            assert s.finish == together[key].finish
            assert s.logp == pytest.approx(together[key].logp, abs=1e-5)


def test_batches_of_long_prompts_have_fewer_rows() -> None:
    """Each row has a cache of the longest prompt and an answer."""
    lengths = {place: len(ids) for place, (_, ids) in enumerate(PROMPTS)}
    for tokens in (1, 30, 60, 100, 1 << 30):
        decoding, each = how(batch_tokens=tokens, batch_size=8), []
        for places, numbers in sample._batches(PROMPTS, 3, decoding):
            each += [(p, n) for p in places for n in numbers]
            own = max(lengths[p] for p in places) + 12
            assert len(places) * len(numbers) <= max(1, min(8, tokens // own))
        assert sorted(each) == [(p, n) for p in range(4) for n in range(3)]
    assert [len(places) for places, _ in sample._batches(PROMPTS, 3, how(batch_tokens=90))] == [1, 1, 2]
    together = drawn(tiny_lm(vocabulary=300))
    assert {k: s.ids for k, s in drawn(tiny_lm(vocabulary=300), batch_tokens=60).items()} == {
        k: s.ids for k, s in together.items()
    }


def test_another_seed_step_or_row_draws_another_sample() -> None:
    model = tiny_lm(vocabulary=300)
    first = drawn(model)
    assert drawn(model) == first
    for draw in (Draw(8, 2), Draw(7, 3)):
        assert sum(a.ids != first[key].ids for key, a in drawn(model, draw=draw).items()) > 20
    moved = drawn(model, [(row + 1, ids) for row, ids in PROMPTS])
    assert sum(moved[row + 1, n].ids != s.ids for (row, n), s in first.items()) > 20


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("layout", ["shared", "padded"])
def test_log_probabilities_are_those_of_training(layout: Any, temperature: float) -> None:
    model = with_adapter("llama", torch.float32, vocabulary=300)
    samples = drawn(model, draw=Draw(1, 1, temperature))
    prompts = dict(PROMPTS)
    rows = [prompt_then_answer(prompts[row], s.ids, row) for (row, _), s in samples.items()]
    with torch.no_grad():
        logp_M = forward.logp(model, to_microbatch(rows, layout), temperature=temperature)
    assert logp_M.tolist() == pytest.approx([x for s in samples.values() for x in s.logp], abs=5e-5)


def test_the_gradient_at_a_temperature_is_autograds() -> None:
    model = with_adapter("llama", torch.float64, vocabulary=300)
    row = prompt_then_answer([5, 6, 7], [8, 9, 3], 0)
    forward.logp(model, to_microbatch([row], "shared"), temperature=1.7).sum().backward()
    actual = {n: p.grad.clone() for n, p in model.module.named_parameters() if p.grad is not None}
    model.module.zero_grad(set_to_none=True)
    ids = torch.tensor([row.ids])
    logp = (model.module(ids, use_cache=False).logits[0, 2:-1] / 1.7).log_softmax(-1)
    logp.gather(1, ids[0, 3:, None]).sum().backward()
    for name, p in model.module.named_parameters():
        assert p.grad is None or torch.allclose(actual[name], p.grad, rtol=0, atol=1e-10)


def test_a_sample_ends_with_its_stop_token_or_at_the_limit() -> None:
    samples = drawn(tiny_lm(vocabulary=300), count=40, stop=tuple(range(0, 300, 7)))
    assert {s.finish for s in samples.values()} == {"stop", "length"}
    for s in samples.values():
        stops = [token % 7 == 0 for token in s.ids]
        assert not any(stops[:-1])
        assert stops[-1] == (s.finish == "stop")
        assert len(s.ids) == len(s.logp) <= 12
        assert s.finish == "stop" or len(s.ids) == 12


def test_first_tokens_have_the_models_distribution() -> None:
    model = tiny_lm(vocabulary=300)
    samples = sample.sample(model, [(n, [5, 6, 7]) for n in range(20)], 200, how(max_new_tokens=1), Draw(0, 0, 1.3))
    counts = np.bincount([s.ids[0] for group in samples for s in group], minlength=300)
    with torch.no_grad():
        prob = (model.module(torch.tensor([[5, 6, 7]])).logits[0, -1].double() / 1.3).softmax(0).numpy()
    often = prob * counts.sum() >= 5
    expected = np.append(prob[often], prob[~often].sum()) * counts.sum()
    actual = np.append(counts[often], counts[~often].sum())
    assert stats.chisquare(actual, expected).pvalue > 1e-3


def test_at_a_low_temperature_samples_are_greedy() -> None:
    model = tiny_lm(vocabulary=300)
    written = generate.complete(model, [ids for _, ids in PROMPTS], how(sampling=GREEDY))
    for (row, _), ids in zip(PROMPTS, written, strict=True):
        for n in range(3):
            s = drawn(model, draw=Draw(0, 0, 1e-3))[row, n]
            assert list(s.ids[: len(ids)]) == ids
            assert len(s.ids) - len(ids) == (s.finish == "stop")


def test_a_prompt_is_computed_once_for_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    feed = generate.State.feed

    def counted(state: Any, ids: Any, *more: Any, **rest: Any) -> Any:
        fed.append(ids.numel())
        return feed(state, ids, *more, **rest)

    monkeypatch.setattr(generate.State, "feed", counted)
    drawn(tiny_lm(vocabulary=300), [(0, [5] * 30)], count=50)
    assert max(fed) <= 50, "30 tokens of the prompt, then at most one token of each sample"
