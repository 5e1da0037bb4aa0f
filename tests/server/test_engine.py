"""The engine: whatever is in its batch, each request gets the answer that it gets alone."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from build import byte_tokenizer, tiny_lm

from tunewright.core.config import AdapterConfig
from tunewright.core.sampling import DECODINGS, Sampling
from tunewright.model import adapters
from tunewright.model.decoding.generate import Decoding, complete
from tunewright.model.decoding.stack import Use
from tunewright.server.engine.choosing import Choosing, RowChoice, logprob_of
from tunewright.server.engine.engine import Engine
from tunewright.server.engine.generation import (
    AdapterFile,
    Begun,
    Ended,
    Event,
    Generation,
    NewToken,
    TooBusy,
    TooLong,
)
from tunewright.server.engine.grammar import Grammars, UnsupportedSchema
from tunewright.server.engine.prefixes import Owner, PrefixCache
from tunewright.server.engine.requests import Limits
from tunewright.train import checkpoints

CONFIGS = {"a": AdapterConfig(rank=4, alpha=8.0), "b": AdapterConfig(kind="rslora", rank=3, alpha=5.0)}
STOP = 257


def adapted(key: str) -> Any:
    model = tiny_lm("llama", torch.float32, 0)
    adapters.attach(model.module, CONFIGS[key], 1)
    for p in adapters.trainable(model.module).values():
        torch.nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(p.numel() + ord(key)))
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, AdapterFile]:
    folder, made = tmp_path_factory.mktemp("adapters"), {}
    for key, config in CONFIGS.items():
        file = folder / f"{key}.safetensors"
        sha256 = checkpoints.save_weights(file, adapters.trainable(adapted(key).module))
        made[key] = AdapterFile(sha256, file, config)
    return made


@contextmanager
def running(limits: Limits = Limits(context=256), grammars: Grammars | None = None) -> Iterator[Engine]:  # noqa: B008
    engine = Engine(tiny_lm("llama", torch.float32, 0), limits, grammars)
    try:
        yield engine
    finally:
        engine.close()


class Collected:
    """The events of one request."""

    def __init__(self, engine: Engine, asked: Generation) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self.begun: Begun | None = None
        self.tokens: list[NewToken] = []
        self.ticket = engine.submit(asked, self.events.put)

    def wait(self) -> Ended:
        while True:
            event = self.events.get(timeout=60)
            if isinstance(event, Begun):
                self.begun = event
            elif isinstance(event, NewToken):
                self.tokens.append(event)
            else:
                return event

    @property
    def ids(self) -> list[int]:
        return [t.token for t in self.tokens]


def alone(asked: Generation, key: str | None) -> list[int]:
    model = adapted(key) if key else tiny_lm("llama", torch.float32, 0)
    with adapters.scaled(model.module, asked.scale):
        decoding = Decoding(asked.max_tokens, tuple(asked.stop), sampling=asked.choosing.sampling)
        return complete(model, [list(asked.prompt)], decoding)[0]


def mixed(files: dict[str, AdapterFile], count: int) -> list[tuple[Generation, str | None]]:
    """Requests that differ in everything; some prompts begin alike."""
    draw, asked = np.random.default_rng(0), []
    heads = [draw.integers(0, 256, 40).tolist() for _ in range(3)]
    for _ in range(count):
        key = [None, "a", "b"][int(draw.integers(3))]
        head = heads[int(draw.integers(3))] if draw.random() < 0.5 else []
        prompt = (*head, *draw.integers(0, 256, int(draw.integers(1, 40))).tolist())
        sampling = [*DECODINGS.values(), Sampling(temperature=1.3, seed=5)][int(draw.integers(4))]
        asked.append(
            (
                Generation(
                    prompt,
                    max_tokens=int(draw.integers(1, 30)),
                    stop=frozenset({STOP, int(draw.integers(256))}),
                    tenant="xy"[int(draw.integers(2))],
                    adapter=files[key] if key else None,
                    scale=[1.0, 1.0, 0.5][int(draw.integers(3))],
                    choosing=Choosing(sampling),
                ),
                key,
            )
        )
    return asked


def test_a_hundred_mixed_requests_get_the_answers_they_get_alone(files: dict[str, AdapterFile]) -> None:
    asked = mixed(files, 100)
    with running(Limits(rows=8, context=256, prefix_bytes=1 << 20)) as engine:
        collected = [Collected(engine, generation) for generation, _ in asked]
        ended = [c.wait() for c in collected]
        stats = engine.stats()
    expected = [alone(*pair) for pair in asked]
    assert [c.ids for c in collected] == expected
    for (generation, _), answer, end in zip(asked, expected, ended, strict=True):
        assert end == Ended("length" if len(answer) == generation.max_tokens else "stop")
    assert stats.cached > 500
    assert stats.tokens == sum(map(len, expected))
    assert sum(c.begun.cached for c in collected if c.begun) == stats.cached


def test_keys_and_values_are_kept_for_the_same_tenant_and_weights_only(files: dict[str, AdapterFile]) -> None:
    prompt = tuple(range(60))
    with running() as engine:

        def cached(tenant: str, adapter: str | None, scale: float = 1.0) -> int:
            of = files[adapter] if adapter else None
            collected = Collected(engine, Generation(prompt, 2, frozenset({STOP}), tenant, of, scale))
            collected.wait()
            assert collected.begun is not None
            return collected.begun.cached

        assert [cached("x", "a"), cached("x", "a")] == [0, 59]
        assert [cached("y", "a"), cached("x", "b"), cached("x", None), cached("x", "a", 0.5)] == [0, 0, 0, 0]
        assert [cached("y", "a"), cached("x", None)] == [59, 59]
        engine.forget(lambda owner: owner.tenant == "y")
        assert [cached("y", "a"), cached("x", "a")] == [0, 59]


def test_a_full_queue_and_a_request_that_is_too_long_are_refused() -> None:
    with running(Limits(rows=1, waiting=2, context=64)) as engine:
        with pytest.raises(TooLong):
            engine.submit(Generation((1,) * 60, 5, frozenset()), print)
        asked = Generation((1, 2), 60, frozenset())
        collected: list[Collected] = []

        def ask_on() -> None:
            for _ in range(50):
                collected.append(Collected(engine, asked))

        with pytest.raises(TooBusy):
            ask_on()
        assert all(c.wait() == Ended("length") for c in collected)


def test_memory_is_bounded_by_rows_times_the_longest() -> None:
    with running() as engine:
        per_token = engine._slots.bytes_per_token
        engine._limits = Limits(rows=8, cache_bytes=100 * per_token, context=256)
        assert engine.most_tokens == 100
        most = 0
        collected = [Collected(engine, Generation((1, 2), n, frozenset())) for n in (90, 20, 30, 20)]
        threads = [threading.Thread(target=c.wait) for c in collected]
        for t in threads:
            t.start()
        while any(t.is_alive() for t in threads):
            rows = engine._active[:]
            most = max(most, len(rows) * max((r.asked.tokens for r in rows), default=0))
            time.sleep(0.001)
        assert 0 < most <= 100
    assert [len(c.ids) for c in collected] == [90, 20, 30, 20]


@pytest.mark.parametrize("broken", ["join", "advance"])
def test_what_fails_ends_every_request_that_it_concerns(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    with running(Limits(rows=4, context=256)) as engine:

        def fail(*_: Any) -> None:
            monkeypatch.undo()
            raise MemoryError

        monkeypatch.setattr(engine._slots, broken, fail)
        several = [Collected(engine, Generation((1, n), 20, frozenset())) for n in range(4)]
        reasons = [c.wait().reason for c in several]
        assert "failed" in reasons
        assert Collected(engine, Generation((1, 2), 5, frozenset())).wait() == Ended("length")


def test_memory_of_long_rows_is_given_back(files: dict[str, AdapterFile]) -> None:
    with running(Limits(rows=8, context=512)) as engine:
        per_token = engine._slots.bytes_per_token
        engine._limits = Limits(rows=8, cache_bytes=1200 * per_token, context=512)
        most = 0
        for sizes in ([300, 60], [60] * 8, [400], [100, 90, 80]):
            collected = [Collected(engine, Generation((1, 2), n, frozenset())) for n in sizes]
            for c in collected:
                c.wait()
            rows, tokens = engine._slots.allocated
            most = max(most, rows * tokens)
        slack = (8 + 4) * 64 + 4 * 400  # by which the cache grows beyond what is needed
        assert most <= 1200 + slack


def test_a_cancelled_request_leaves_and_others_are_not_changed(files: dict[str, AdapterFile]) -> None:
    stay = Generation((9, 8, 7), 40, frozenset(), adapter=files["a"])
    with running(Limits(rows=2, context=256)) as engine:
        gone = Collected(engine, Generation((1, 2, 3), 250, frozenset(), adapter=files["b"]))
        other = Collected(engine, stay)
        waiting = Collected(engine, Generation((1, 2, 3), 250, frozenset()))
        while not isinstance(gone.events.get(timeout=60), NewToken):
            pass
        gone.ticket.cancel()
        waiting.ticket.cancel()
        assert other.wait() == Ended("length")
        assert other.ids == alone(stay, "a")
        last = Collected(engine, stay)
        assert last.wait() == Ended("length")
        assert last.ids == other.ids
        for _ in range(200):  # a row leaves after its end has been reported
            if engine.stats().active == 0:
                break
            time.sleep(0.01)
        assert engine.stats().active == engine.stats().waiting == 0


def test_more_adapters_than_fit_take_turns(files: dict[str, AdapterFile]) -> None:
    asked = mixed(files, 12)
    with running(Limits(rows=4, context=256, adapters=1)) as engine:
        collected = [Collected(engine, generation) for generation, _ in asked]
        for c in collected:
            c.wait()
        assert len(engine.stats().adapters) == 1
    assert [c.ids for c in collected] == [alone(*pair) for pair in asked]


def test_a_damaged_adapter_fails_its_request_and_no_other(files: dict[str, AdapterFile], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(files["a"].file.read_bytes()[:-8] + b"????????")
    with running() as engine:
        bad = Collected(
            engine, Generation((1,), 5, frozenset(), adapter=AdapterFile(files["a"].sha256, damaged, CONFIGS["a"]))
        )
        good = Collected(engine, Generation((1,), 5, frozenset()))
        assert bad.wait().reason == "failed"
        assert good.wait() == Ended("length")


def test_a_step_that_fails_ends_its_requests_and_not_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as engine:
        advance = engine._slots.advance

        def broken(tokens: Any, chunks: Any) -> Any:
            monkeypatch.setattr(engine._slots, "advance", advance)
            raise MemoryError

        monkeypatch.setattr(engine._slots, "advance", broken)
        first = Collected(engine, Generation((1, 2), 5, frozenset()))
        assert first.wait() == Ended("failed", "internal error: MemoryError")
        second = Collected(engine, Generation((1, 2), 5, frozenset()))
        assert second.wait() == Ended("length")


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "kind": {"enum": ["x", "why"]},
        "counts": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 2},
    },
    "required": ["name", "kind", "counts"],
    "additionalProperties": False,
}


def test_answers_match_their_schema_and_rows_beside_them_are_not_changed(files: dict[str, AdapterFile]) -> None:
    tokenizer = byte_tokenizer()
    grammars = Grammars(tokenizer, 258, [STOP])
    grammar = grammars.compiled(SCHEMA)
    plain = Generation((4, 5, 6), 30, frozenset({STOP}), adapter=files["b"])
    samplings = [Choosing(Sampling(temperature=1.0, seed=n)) for n in range(6)]
    with running(grammars=grammars) as engine:
        beside = Collected(engine, plain)
        asked = [Generation((1, 2), 200, frozenset({STOP}), choosing=c, grammar=grammar) for c in samplings]
        collected = [Collected(engine, a) for a in asked]
        for c in collected:
            assert c.wait() == Ended("stop")
            jsonschema.validate(json.loads(tokenizer.decode(c.ids)), SCHEMA)
        beside.wait()
    assert beside.ids == alone(plain, "b")
    assert len({tuple(c.ids) for c in collected}) > 1


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"not": {"type": "string"}}, "#/not"),
        ({"properties": {"a": {"type": "array", "uniqueItems": True}}}, "#/properties/a/uniqueItems"),
        ({"type": "string", "pattern": "^(?=a)b"}, "#/pattern"),
        ({"anyOf": [{"type": "string"}, {"type": "array", "contains": {"const": 1}}]}, "#/anyOf/1/contains"),
        ({"type": "string", "format": "weird"}, "#/format"),
    ],
)
def test_what_cannot_be_enforced_is_refused_with_its_place(schema: dict[str, Any], path: str) -> None:
    with pytest.raises(UnsupportedSchema) as caught:
        Grammars(byte_tokenizer(), 258, [STOP]).compiled(schema)
    assert caught.value.path == path


def test_bias_penalties_and_nucleus() -> None:
    logits_V = torch.tensor([1.0, 2.0, 3.0, -1.0])
    assert RowChoice(Choosing(bias=((3, 100.0),)), [0], None).next(logits_V) == 3
    assert RowChoice(Choosing(bias=((2, -100.0),)), [0], None).next(logits_V) == 1
    often = RowChoice(Choosing(frequency=0.4), [2, 2, 2], None)
    assert [often.next(logits_V) for _ in range(6)] == [2, 2, 2, 1, 2, 1]  # 3, 2.6, 2.2 against 2; only answers count
    once = RowChoice(Choosing(presence=1.5), [0], None)
    assert [once.next(logits_V) for _ in range(4)] == [2, 1, 2, 2]
    hot = Sampling(temperature=2.0)
    drawn = [RowChoice(Choosing(hot, top_p=0.6).nth(n), [0], None).next(logits_V) for n in range(50)]
    assert set(drawn) == {1, 2}
    assert drawn == [RowChoice(Choosing(hot, top_p=0.6).nth(n), [0], None).next(logits_V) for n in range(50)]
    again = Choosing(replace(hot, repetition_penalty=10.0), top_p=0.6)  # the penalty first, as elsewhere
    assert {RowChoice(again.nth(n), [2, 1], None).next(logits_V) for n in range(50)} == {0, 2}
    reported = logprob_of(logits_V, 1, 2)
    assert [t for t, _ in reported.top] == [2, 1]
    assert reported.logprob == pytest.approx(float(logits_V.log_softmax(-1)[1]))


def test_what_was_used_longest_ago_leaves_the_prefix_cache() -> None:
    def cache(tokens: int) -> list[torch.Tensor]:
        return [torch.zeros(tokens)]

    kept, owner = PrefixCache(4 * 100), Owner("t", Use("a"))
    kept.keep(owner, range(40), cache(40))
    kept.keep(owner, range(100, 140), cache(40))
    assert kept.longest(owner, list(range(30)))[1] == 29
    kept.keep(owner, range(200, 240), cache(40))
    assert [kept.longest(owner, [*range(n, n + 40), 1])[1] for n in (0, 100, 200)] == [40, 0, 40]
    kept.keep(owner, range(200, 250), cache(50))  # takes the place of its own beginning
    assert [kept.longest(owner, [*range(n, n + 50), 1])[1] for n in (0, 200)] == [40, 50]
    assert kept.size == 4 * 90
    kept.keep(owner, range(300, 500), cache(200))  # larger than all that may be kept
    assert kept.size == 4 * 90
