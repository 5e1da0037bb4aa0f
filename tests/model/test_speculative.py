"""Several tokens a step: the same answers as one token a step, in fewer steps, whatever is guessed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from build import tiny_lm
from torch import Tensor

from tunewright.core.config import AdapterConfig
from tunewright.model import adapters
from tunewright.model.decoding import generate, speculative
from tunewright.model.decoding.drafts import Drafts
from tunewright.model.decoding.fused import FusedState
from tunewright.model.decoding.generate import Decoding, complete
from tunewright.model.decoding.part import ROOM
from tunewright.model.language_model import LanguageModel

NEW = ROOM + 20
DECODING = Decoding(NEW, (3,))


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(4, 256, int(draw.integers(3, 20))).tolist() for _ in range(count)]


FAMILY: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"num_key_value_heads": 1},
    "qwen3": {},
    "mistral": {"num_key_value_heads": 4, "sliding_window": None},
}


def adapted(kind: str = "llama") -> LanguageModel:
    model = tiny_lm(kind, **FAMILY[kind])
    adapters.attach(model.module, AdapterConfig(rank=4, alpha=8.0), 1)
    for p in adapters.trainable(model.module).values():
        torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(p.numel()))
    return model


@contextmanager
def counted() -> Iterator[list[int]]:
    """Tokens of every step."""
    seen: list[int] = []
    step, extend = FusedState.step, FusedState.extend

    def one(self: FusedState, token_B: Tensor) -> Tensor:
        seen.append(1)
        return step(self, token_B)

    def several(self: FusedState, ids_Q: Tensor) -> Tensor:
        seen.append(len(ids_Q))
        return extend(self, ids_Q)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FusedState, "step", one)
        patch.setattr(FusedState, "extend", several)
        yield seen


@pytest.mark.parametrize("kind", FAMILY)
def test_logits_of_several_tokens_are_those_of_one_at_a_time(kind: str) -> None:
    """Past the room of the cache, with and without a shared prefix."""
    model, (prompt,) = adapted(kind), prompts(1)
    draw = torch.Generator().manual_seed(0)
    for prefix in (None, generate.prefill(model, prompt[:2])):
        with torch.inference_mode():
            one, many = (generate.after_prompts(model, [prompt], DECODING, prefix)[0] for _ in range(2))
            assert isinstance(one, FusedState)
            assert isinstance(many, FusedState)
            for count in (1, 5, 2, ROOM, 7):
                ids_Q = torch.randint(0, 256, (count,), generator=draw)
                expected = torch.stack([one.step(i[None])[0] for i in ids_Q])
                assert torch.allclose(many.extend(ids_Q), expected, atol=2e-5)
            many.rewind(3)
            again = torch.randint(0, 256, (2,), generator=draw)
            one.rewind(3)
            assert torch.allclose(many.extend(again)[-1], [one.step(i[None]) for i in again][-1][0], atol=2e-5)


def guesses_of(kind: str, model: LanguageModel, asked: Sequence[Sequence[int]]) -> Drafts:
    answers = complete(model, asked, DECODING)
    whole = [[*p[-6:], *a, 3] for p, a in zip(asked, answers, strict=True)]
    if kind == "its own answers":
        return Drafts(whole)
    if kind == "nothing":
        return Drafts([])
    draw = np.random.default_rng(1)
    if kind == "half of them wrong":
        return Drafts([[t if draw.random() < 0.5 else int(draw.integers(4, 256)) for t in ids] for ids in whole])
    return Drafts([draw.integers(0, 256, 300).tolist() for _ in range(20)])


@pytest.mark.parametrize("kind", ["its own answers", "half of them wrong", "noise", "nothing"])
def test_the_answers_are_the_same_whatever_is_guessed(kind: str) -> None:
    model, asked = adapted(), prompts(6)
    drafts = guesses_of(kind, model, asked)
    plain = [complete(model, [p], DECODING)[0] for p in asked]
    with counted() as steps:
        assert [complete(model, [p], replace(DECODING, drafts=drafts))[0] for p in asked] == plain
    tokens = sum(map(len, plain))
    if kind == "its own answers":
        assert len(steps) < 0.4 * tokens
    assert max(steps, default=1) <= speculative.MOST + 1


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
def test_an_answer_ends_at_its_limit_and_at_its_stop_token(limit: int) -> None:
    model, asked = adapted(), prompts(4)
    drafts = guesses_of("its own answers", model, asked)
    for prompt in asked:
        plain = complete(model, [prompt], Decoding(NEW, ()))[0]
        assert complete(model, [prompt], Decoding(limit, (), drafts=drafts))[0] == plain[:limit]
        stop = plain[limit]
        answer = complete(model, [prompt], Decoding(NEW, (stop,), drafts=drafts))[0]
        assert answer == plain[: plain.index(stop)]


def test_where_two_tokens_are_about_equal_the_plain_step_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: several tokens a step are rounded by more than some margins, so that the second token wins."""
    model, asked = adapted(), prompts(3)
    drafts = guesses_of("its own answers", model, asked)
    plain = [complete(model, [p], DECODING)[0] for p in asked]
    extend = FusedState.extend

    def rounded(self: FusedState, ids_Q: Tensor) -> Tensor:
        logits_QV = extend(self, ids_Q)
        best = logits_QV.topk(2, -1)
        close = best.values[:, 0] - best.values[:, 1] < 0.05
        logits_QV[close, best.indices[close, 1]] = best.values[close, 0] + 1e-6
        return logits_QV

    monkeypatch.setattr(FusedState, "extend", rounded)
    monkeypatch.setattr(speculative, "MARGIN", 0.1)
    assert [complete(model, [p], replace(DECODING, drafts=drafts))[0] for p in asked] == plain


def test_other_answers_are_computed_one_token_a_step() -> None:
    """In 16 bits, by modules, or several at once."""
    drafts = Drafts([[1, 2, 3]] * 3)
    by_modules = replace(tiny_lm("llama"), decoding="modules")
    for model, count in ((tiny_lm("llama", torch.bfloat16), 1), (by_modules, 1), (adapted(), 3)):
        with counted() as steps:
            complete(model, prompts(count), Decoding(5, (), drafts=drafts))
        assert set(steps) <= {1}


def test_guesses() -> None:
    """What followed the same tokens most often, of as many tokens as possible; or what follows them in the prompt."""
    drafts = Drafts([[9, 1, 2, 3, 4], [8, 1, 2, 3, 5], [7, 1, 2, 3, 4], [6, 2, 3, 5, 0], [5, 5, 5, 5, 5]])
    assert drafts.guess([1, 2], [], 3) == [3, 4]
    assert drafts.guess([0, 1, 2], [], 1) == [3]
    assert drafts.guess([50, 51], [40, 50, 51, 52, 53], 2) == [52, 53]
    assert drafts.guess([50, 51], [], 4) == []
    assert Drafts([]).guess([1, 2], [1, 2, 3], 9) == [3]
    assert len(drafts.guess([5, 5], [], 100)) < 20, "many guesses in a row are seldom all right"
