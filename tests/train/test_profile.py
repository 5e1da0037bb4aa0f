"""The profile counts what is computed and leaves no trace; rendered rows come back from disk as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from build import byte_tokenizer, plan_of, rows, tiny_model

from tunewright.core.config import AdapterConfig
from tunewright.data.examples import Chat, Message
from tunewright.methods import sft
from tunewright.model import adapters, fused_llama
from tunewright.tokens import render_cache, rendering
from tunewright.train import profile
from tunewright.tokens.template import Template


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
def test_the_profile_accounts_for_the_step_and_puts_the_weights_back(layout: str) -> None:
    model = tiny_model()
    adapters.attach(model, AdapterConfig(rank=4), 0)
    model.lean = layout == "shared" and fused_llama.applies(model)
    before = {n: p.detach().clone() for n, p in adapters.trainable(model).items()}
    found = profile.measure(model, sft, rows(8), plan_of(layout=layout), peak_gflops=100.0)
    assert all(torch.equal(p, before[n]) for n, p in adapters.trainable(model).items())
    assert found.shares["matrix products"] > 0
    assert abs(sum(found.shares.values()) - found.seconds) < 0.01 * found.seconds + 1e-3
    assert found.of_peak == pytest.approx(found.gflop / found.seconds / 100.0)
    assert len(found.lines()) >= 8


def test_flops_are_those_that_torch_counts() -> None:
    """The formula against torch's own counter, which sees every matrix product of a forward and backward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    from tunewright.model import loading
    from tunewright.tokens.packing import to_batch

    model = tiny_model(hidden_size=64, intermediate_size=128)
    adapters.attach(model, AdapterConfig(rank=4), 0)
    batch = to_batch(rows(1, longest=60), "packed")
    with FlopCounterMode(display=False) as counter:
        loading.loss(model, batch)[0].backward()
    tokens_, square = batch.ids_BT.size, batch.ids_BT.size**2
    # Products over the whole square are counted, of which the mask hides half; the first layer's input needs no gradient.
    expected = profile.flops(model, tokens_, square, len(batch.target_N))
    assert 0.85 < counter.get_total_flops() / expected < 1.05


def test_rendered_rows_are_read_back_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = Template(byte_tokenizer())
    chats: list[Any] = [Chat((Message("user", f"q {i}"), Message("assistant", "a" * i)), f"x:{i}") for i in range(1, 6)]
    chosen = [0, 2, 3, 4]
    first = render_cache.render_rows(template, chats, chosen, 512, True, tmp_path)
    assert first == rendering.render_rows(template, chats, chosen, 512, True)
    monkeypatch.setattr(rendering, "render_rows", lambda *_: pytest.fail("rendered twice"))
    assert render_cache.render_rows(template, chats, chosen, 512, True, tmp_path) == first
    monkeypatch.undo()
    longest = max(len(r.ids) for r in first[0])
    assert render_cache.render_rows(template, chats, chosen, longest - 1, True, tmp_path)[1] == [4]  # another limit, another key
    for file in (tmp_path / "tokens").iterdir():
        file.write_bytes(b"broken")
    assert render_cache.render_rows(template, chats, chosen, 512, True, tmp_path) == first
