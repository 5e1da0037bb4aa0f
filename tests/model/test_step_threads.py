"""Decoding leaves other processes their cores only where no bit depends on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch
from build import tiny_lm
from torch import Tensor

from tunewright.model.decoding import threads
from tunewright.model.decoding.fused import FusedState
from tunewright.model.decoding.generate import Decoding, complete
from tunewright.model.decoding.state import State
from tunewright.system import crowding
from tunewright.system.crowding import Crowd

DECODING = Decoding(70, (3,))


@pytest.fixture
def two_threads() -> Iterator[None]:
    with crowding.restored():
        torch.set_num_threads(2)
        yield


def prompts(count: int) -> list[list[int]]:
    draw = np.random.default_rng(count)
    return [[7] * 10 + draw.integers(4, 256, int(draw.integers(1, 12))).tolist() for _ in range(count)]


def crowded(monkeypatch: pytest.MonkeyPatch, busy: Callable[[], bool] = lambda: True) -> None:
    def adapted(crowd: Crowd) -> Crowd:
        return Crowd(crowd.planned, 2, 1 if busy() else crowd.planned, None)

    monkeypatch.setattr(crowding, "adapted", adapted)
    monkeypatch.setattr(threads, "_same", WeakKeyDictionary())


def threads_of_steps(monkeypatch: pytest.MonkeyPatch, state: type[State] | type[FusedState]) -> list[int]:
    seen: list[int] = []
    plain = state.step

    def step(self: State | FusedState, token_B: Tensor) -> Tensor:
        seen.append(torch.get_num_threads())
        return plain(self, token_B)  # type: ignore[arg-type]

    monkeypatch.setattr(state, "step", step)
    return seen


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_are_the_same_while_others_come_and_go(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_lm("llama", dtype)
    alone = complete(model, prompts(5), DECODING)
    turns = iter(range(10_000))
    crowded(monkeypatch, lambda: next(turns) % 7 > 2)
    seen = threads_of_steps(monkeypatch, FusedState)
    assert complete(model, prompts(5), DECODING) == alone
    (asked,) = threads._same.values()
    assert (1 in seen) == any(asked.values()), "on some processors, the bits of every step depend on it"
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_all_threads_where_a_bit_depends_on_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: with one thread, steps of three rows and more are rounded otherwise."""
    model, plain = tiny_lm("llama"), FusedState.logits_after

    def logits_after(self: FusedState, token_B: Tensor) -> Tensor:
        off = 1e-6 if torch.get_num_threads() == 1 and len(token_B) > 2 else 0.0
        return plain(self, token_B) + off

    monkeypatch.setattr(FusedState, "logits_after", logits_after)
    crowded(monkeypatch)
    seen = threads_of_steps(monkeypatch, FusedState)
    complete(model, prompts(3), Decoding(4, ()))
    assert set(seen) == {2}
    seen.clear()
    complete(model, prompts(2), Decoding(4, ()))
    assert set(seen) == {1}


@pytest.mark.usefixtures("two_threads")
def test_a_shape_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = tiny_lm("llama"), FusedState.logits_after
    calls: list[tuple[int, int]] = []

    def logits_after(self: FusedState, token_B: Tensor) -> Tensor:
        calls.append(self.shape)
        return plain(self, token_B)

    monkeypatch.setattr(FusedState, "logits_after", logits_after)
    crowded(monkeypatch)
    steps = 30
    complete(model, prompts(2), Decoding(steps + 1, ()))
    assert len(calls) == steps + len(set(calls))
    calls.clear()
    complete(model, prompts(2), Decoding(steps + 1, ()))
    assert len(calls) == steps, "nor again in a later answer"


@pytest.mark.usefixtures("two_threads")
def test_steps_with_modules_keep_their_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    model = dataclasses.replace(tiny_lm("llama"), decoding="modules")
    crowded(monkeypatch)
    seen = threads_of_steps(monkeypatch, State)
    complete(model, prompts(2), Decoding(4, ()))
    assert set(seen) == {2}
