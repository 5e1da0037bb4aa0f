"""Rows that join and leave between steps, each with its own adapter, get the answers that they get alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from build import tiny_lm

from tunewright.core.config import AdapterConfig
from tunewright.model import adapters
from tunewright.model.decoding.generate import Decoding, complete
from tunewright.model.decoding.slots import Slots
from tunewright.model.decoding.stack import BASE, Use
from tunewright.model.language_model import LanguageModel

FAMILY: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"num_key_value_heads": 1},
    "qwen3": {},
    "mistral": {"num_key_value_heads": 4, "sliding_window": None},
}
ADAPTERS = {
    "a": AdapterConfig(rank=4, alpha=8.0),
    "b": AdapterConfig(kind="rslora", rank=3, alpha=5.0, targets=["q_proj", "down_proj"]),
    "c": AdapterConfig(rank=2, alpha=3.0),
    "d": AdapterConfig(rank=2, alpha=3.0, init="pissa", rank_pattern={"q_proj": 3}),
}
NEW = 12


def adapted(kind: str, key: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    model = tiny_lm(kind, dtype, 0, **FAMILY[kind])
    adapters.attach(model.module, ADAPTERS[key], 1)
    for p in adapters.trainable(model.module).values():
        torch.nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(p.numel() + ord(key)))
    return model


def loaded(kind: str, keys: str = "abc", dtype: torch.dtype = torch.float32) -> Slots:
    slots = Slots(tiny_lm(kind, dtype, 0, **FAMILY[kind]))
    for key in keys:
        tensors = {n: p.detach() for n, p in adapters.update_tensors(adapted(kind, key, dtype).module).items()}
        slots.stack.load(key, tensors, ADAPTERS[key])
    return slots


def alone(kind: str, use: Use, prompt: list[int], dtype: torch.dtype = torch.float32) -> list[int]:
    if use.adapter is None:
        return complete(tiny_lm(kind, dtype, 0, **FAMILY[kind]), [prompt], Decoding(NEW, ()))[0]
    model = adapted(kind, use.adapter, dtype)
    with adapters.scaled(model.module, use.scale):
        return complete(model, [prompt], Decoding(NEW, ()))[0]


def read(slots: Slots, prompt: list[int], use: Use, chunk: int) -> int:
    """Read a prompt in chunks, let its row join; its first token."""
    cache, used = slots.new_cache(len(prompt)), 0
    while used < len(prompt):
        part = prompt[used : used + chunk]
        logits_V = slots.read(cache, used, part, use)
        used += len(part)
    slots.join(cache, used, use)
    return int(logits_V.argmax())


def served(slots: Slots, asked: list[tuple[list[int], Use]], most: int, draw: np.random.Generator) -> list[list[int]]:
    """The answers; rows join when there is room and chance wants it, and leave when they are finished."""
    answers: list[list[int]] = [[] for _ in asked]
    waiting, active = list(range(len(asked))), list[int]()
    while waiting or active:
        while waiting and len(active) < most and (not active or draw.random() < 0.6):
            n = waiting.pop(0)
            answers[n].append(read(slots, *asked[n], int(draw.integers(1, 9))))
            active.append(n)
        logits_BV = slots.step([answers[n][-1] for n in active])
        for n, token in zip(active, logits_BV.argmax(-1).tolist(), strict=True):
            answers[n].append(token)
        for row in reversed(range(len(active))):
            if len(answers[active[row]]) >= NEW:
                slots.leave(row)
                active[row] = active[-1]
                active.pop()
    assert slots.rows == 0
    return [a[:NEW] for a in answers]


@pytest.mark.parametrize("kind", FAMILY)
def test_answers_are_those_of_each_row_alone(kind: str) -> None:
    draw = np.random.default_rng(0)
    uses = [BASE, Use("a"), Use("b"), Use("c"), Use("a", 0.5), Use("b", 0.0)]
    asked = [
        (draw.integers(0, 256, int(draw.integers(1, 30))).tolist(), uses[int(draw.integers(len(uses)))])
        for _ in range(20)
    ]
    answers = served(loaded(kind), asked, 6, draw)
    assert answers == [alone(kind, use, prompt) for prompt, use in asked]
    assert len({tuple(a) for a in answers}) > 10


def test_adapters_leave_and_others_take_their_place() -> None:
    slots, prompt = loaded("llama", "abc"), [1, 2, 3, 4]
    slots.stack.unload("a")
    assert slots.stack.loaded == ("b", "c")
    slots.stack.load(
        "a", {n: p.detach() for n, p in adapters.trainable(adapted("llama", "a").module).items()}, ADAPTERS["a"]
    )
    asked = [(prompt, Use(key)) for key in "abc"]
    answers = served(slots, asked, 3, np.random.default_rng(1))
    assert answers == [alone("llama", use, prompt) for prompt, use in asked]


def test_an_adapter_with_initial_values_and_several_ranks_is_served() -> None:
    asked = [([1, 2, 3, 4], Use("d")), ([7, 8], Use("a")), ([1, 2, 3, 4], Use("d", 0.5))]
    answers = served(loaded("llama", "ad"), asked, 3, np.random.default_rng(1))
    assert answers == [alone("llama", use, prompt) for prompt, use in asked]


def test_logits_are_close_whatever_else_is_in_the_batch() -> None:
    """Of one row alone, and beside others with other adapters and lengths."""
    slots, prompt, draw = loaded("llama"), [5, 6, 7], np.random.default_rng(0)
    token = read(slots, prompt, Use("a"), 8)
    alone_V = slots.step([token])[0]
    slots.leave(0)
    tokens = [read(slots, draw.integers(0, 256, n).tolist(), use, 8) for n, use in ((40, BASE), (9, Use("c")))]
    tokens.insert(1, read(slots, prompt, Use("a"), 2))
    slots_order = [tokens[0], tokens[2], tokens[1]]
    beside_V = slots.step(slots_order)[2]
    torch.testing.assert_close(beside_V, alone_V, atol=1e-5, rtol=1e-5)


def test_an_adapter_of_another_model_is_refused() -> None:
    slots = loaded("llama", "")
    with pytest.raises(AssertionError, match="another model"):
        slots.stack.load("x", {"layers.9.q_proj.lora_A": torch.zeros(2, 3)}, ADAPTERS["c"])
    with pytest.raises(AssertionError):
        slots.stack.load("d", {}, AdapterConfig(kind="dora", rank=2))


def test_a_cache_that_shrinks_and_grows_has_no_leftovers() -> None:
    """What a long row left behind is not seen by a shorter one that takes its place."""
    slots, draw = loaded("llama"), np.random.default_rng(3)
    long, short = draw.integers(0, 256, 90).tolist(), [9, 8]
    first, second = read(slots, long, BASE, 16), read(slots, short, Use("a"), 1)
    for _ in range(5):
        first, second = slots.step([first, second]).argmax(-1).tolist()
    slots.leave(0)
    slots.leave(0)
    asked = [(short, Use("a")), (long, BASE), (short, BASE)]
    assert served(slots, asked, 2, draw) == [alone("llama", use, prompt) for prompt, use in asked]
