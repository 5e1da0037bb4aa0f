"""Steps without modules give the bits of the modules' own, and are used only where they do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from build import tiny_lm, tiny_model

from tunewright.core.config import AdapterConfig
from tunewright.core.sampling import DECODINGS, GREEDY
from tunewright.model import adapters, language_model
from tunewright.model.attention import interface
from tunewright.model.decoding import fused as decoding
from tunewright.model.decoding import generate
from tunewright.model.decoding.fused import FusedState
from tunewright.model.decoding.generate import Decoding, Request, complete, complete_all
from tunewright.model.decoding.part import ROOM
from tunewright.model.decoding.state import State, cache_argument
from tunewright.model.language_model import LanguageModel

FAMILY: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"num_key_value_heads": 1},
    "qwen3": {},
    "mistral": {"num_key_value_heads": 4, "sliding_window": None},
    "granite": {"num_key_value_heads": 2},
}
ADAPTERS = {
    "none": None,
    "lora": AdapterConfig(rank=4, alpha=8.0),
    "rslora on some": AdapterConfig(kind="rslora", rank=3, alpha=5.0, targets=["q_proj", "down_proj"]),
    "dora": AdapterConfig(kind="dora", rank=2),
}


def family_model(kind: str, dtype: torch.dtype, adapter: AdapterConfig | None, seed: int = 0) -> LanguageModel:
    model = tiny_lm(kind, dtype, seed, **FAMILY[kind])
    assert model.decoding != "modules"
    if adapter is not None:
        adapters.attach(model.module, adapter, 1)
        for p in adapters.trainable(model.module).values():
            torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(p.numel()))
    return model


def prompts(count: int, shared: int, seed: int) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    head = draw.integers(0, 256, shared).tolist()
    return [head + draw.integers(0, 256, int(draw.integers(1, 12))).tolist() for _ in range(count)]


@contextmanager
def both(model: LanguageModel, asked: list[list[int]]) -> Iterator[tuple[State, FusedState]]:
    """The same prompts, read twice; the second state takes steps without modules."""
    modules, same = dataclasses.replace(model, decoding="modules"), generate.common_prefix(asked)
    prefix = generate.prefill(model, asked[0][:same]) if len(asked) > 1 and same else None
    state, again = (generate.after_prompts(modules, asked, Decoding(1, ()), prefix)[0] for _ in range(2))
    assert isinstance(state, State)
    assert isinstance(again, State)
    with generate.stepping(modules, state):
        yield state, FusedState.after(again, model.decoding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("kind", FAMILY)
def test_logits_are_those_of_the_modules_bit_for_bit(kind: str, adapter: str, dtype: torch.dtype) -> None:
    """Rows of different lengths, with and without a prefix, past the room of the cache; rows leave; one row alone."""
    model = family_model(kind, dtype, ADAPTERS[adapter])
    draw = torch.Generator().manual_seed(0)
    for count, shared, scale in ((5, 20, 1.0), (4, 0, -0.5), (1, 0, 1.0), (2, 9, 0.0)):
        with (
            torch.inference_mode(),
            adapters.scaled(model.module, scale),
            both(model, prompts(count, shared, count)) as (state, fused),
        ):
            rows = count
            for step in range(ROOM + 6):
                token_B = torch.randint(0, 256, (rows,), generator=draw)
                assert torch.equal(state.step(token_B), fused.step(token_B)), (count, shared, step)
                if step % 5 == 4 and rows > 1:
                    keep = torch.randperm(rows, generator=draw)[: rows - 1].sort().values
                    order = fused.keep(keep)
                    assert torch.equal(order.sort().values, keep)
                    state.keep(order)
                    rows -= 1


@pytest.mark.parametrize("kind", FAMILY)
def test_answers_are_those_of_transformers_generate(kind: str) -> None:
    """Greedy tokens in float32 for several random models, in batches, row by row, and with the adapter off."""
    stop = list(range(30))
    for seed in range(3):
        model = family_model(kind, torch.float32, ADAPTERS["lora"], seed)
        asked = prompts(7, 20 * (seed % 2), seed)
        for scale in (1.0, 0.0):
            with adapters.scaled(model.module, scale):
                answers = complete(model, asked, Decoding(40, tuple(stop), batch_size=4))
                assert answers == [complete(model, [ids], Decoding(40, tuple(stop)))[0] for ids in asked]
                for ids, actual in zip(asked, answers, strict=True):
                    out = model.module.generate(
                        torch.tensor([ids]),
                        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                        max_new_tokens=40,
                        do_sample=False,
                        eos_token_id=stop,
                        use_cache=True,
                    )[0, len(ids) :].tolist()
                    assert [t for t in out if t not in stop] == actual


@pytest.mark.parametrize("kind", ["llama", "qwen3", "olmo2", "gpt2"])
def test_requests_that_are_decoded_together_get_the_answers_that_each_gets_alone(kind: str) -> None:
    """Requests with beginnings of their own, of which some end early, in batches that hold several or a part of one."""
    model, stop = tiny_lm(kind, **FAMILY.get(kind, {})), tuple(range(20))
    samplings = [DECODINGS["penalty"], GREEDY, DECODINGS["sampled"], GREEDY]
    sizes = [(6, 25), (1, 0), (4, 0), (3, 12)]
    requests = [
        Request(prompts(count, shared, n), sampling)
        for n, ((count, shared), sampling) in enumerate(zip(sizes, samplings, strict=True))
    ]
    for batch_size in (256, 5, 1):
        how, ticks = Decoding(30, stop, batch_size), list[int]()
        together = complete_all(model, requests, how, ticks.append)
        assert sum(ticks) == 14
        for request, answers in zip(requests, together, strict=True):
            alone = dataclasses.replace(how, sampling=request.sampling)
            assert answers == complete(model, request.prompts, alone)
            assert answers == [complete(model, [prompt], alone)[0] for prompt in request.prompts]


def test_batches_are_limited_in_rows_and_in_tokens() -> None:
    """Rows are padded to the longest of their chunk, so one long row must not make all others as long."""
    short, long = [[1] * 9 + [n] for n in range(6)], [[2] * 90 + [n] for n in range(2)]
    how = Decoding(10, (), batch_size=5)
    assert generate._decode_batches([short, long], how, True) == [
        [(0, [0, 1, 2, 3, 4])],
        [(0, [5]), (1, [0, 1])],
    ]
    assert generate._decode_batches([short, long], how, False) == [[(0, [0, 1, 2, 3, 4])], [(0, [5])], [(1, [0, 1])]]
    mixed = [*short[:3], long[0]]
    few = dataclasses.replace(how, batch_tokens=101 + 2 * 20)
    assert generate._decode_batches([mixed], few, True) == [[(0, [3])], [(0, [0, 1, 2])]]
    assert generate._decode_batches([mixed], dataclasses.replace(few, batch_tokens=1), True) == [
        [(0, [r])] for r in (3, 0, 1, 2)
    ]


@pytest.mark.parametrize("shared", [0, 20])
def test_prompts_that_are_computed_in_parts_get_the_same_answers(shared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = family_model("llama", torch.float32, None), prompts(9, shared, 0)
    together = complete(model, asked, Decoding(40, ()))
    monkeypatch.setattr(generate, "PREFILL_TOKENS", 24)
    assert len(generate._parts([p[shared:] for p in asked])) > 2
    assert complete(model, asked, Decoding(40, ())) == together


def test_modules_are_used_where_steps_without_them_would_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other norms, factors of residuals, layers without positions, heads with a cap, other names; and our own bugs."""
    others: list[tuple[str, dict[str, Any]]] = [
        ("gemma3_text", {}),
        ("olmo2", {"num_key_value_heads": 2}),
        ("granite", {"num_key_value_heads": 2, "residual_multiplier": 0.5}),
        ("granite", {"num_key_value_heads": 2, "logits_scaling": 2.0}),
        ("smollm3", {"num_key_value_heads": 2, "num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]}),
        ("gpt2", {}),
    ]
    for kind, more in others:
        assert tiny_lm(kind, **more).decoding == "modules", kind
    module = tiny_model()
    assert language_model.of(module).decoding == "vector"
    assert module.config._attn_implementation != interface.PREFIXED
    plain = decoding.Layer.of
    monkeypatch.setattr(decoding.Layer, "of", lambda part: dataclasses.replace(plain(part), scaling=0.36))
    assert language_model.of(module).decoding == "modules"


def test_steps_are_taken_without_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `fits` holds, modules read the prompts alone; with a sliding window, which counts the places of
    transformers' cache, or with rows that cannot be batched, they compute the answers too."""
    model, fed = tiny_lm(), []
    feed = State.feed
    monkeypatch.setattr(
        State, "feed", lambda self, ids, *more, **named: fed.append(ids) or feed(self, ids, *more, **named)
    )
    for how, count in ((Decoding(9, ()), 1), (Decoding(9, (), window=8), 9), (Decoding(9, (), batchable=False), 9)):
        fed.clear()
        complete(model, [[1, 2, 3]], how)
        assert len(fed) == count


def test_the_cache_is_passed_under_the_name_that_the_model_knows() -> None:
    """transformers 5.24 renamed it, and warns about the old name."""

    def old(self: object, past_key_values: object = None) -> None: ...
    def new(self: object, cache: object = None) -> None: ...

    assert (cache_argument(old), cache_argument(new)) == ("past_key_values", "cache")
