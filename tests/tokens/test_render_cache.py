"""TokenSequence rows are read back from disk as they were written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from build import (
    byte_tokenizer,
)

from tunewright.data.messages import Chat, Message
from tunewright.methods import METHODS, kto, sft
from tunewright.tokens import render_cache, rendering
from tunewright.tokens.render_cache import RowRenderer
from tunewright.tokens.sequences import TrainRow, digest, prompt_then_answer
from tunewright.tokens.template import Template


def chat_rows(count: int) -> list[Chat]:
    return [Chat((Message("user", f"q {i}"), Message("assistant", "a" * i)), f"x:{i}") for i in range(1, count + 1)]


def test_rendered_rows_are_read_back_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how = RowRenderer(Template(byte_tokenizer()), sft.prepare, 512, "drop")
    chats, chosen = chat_rows(5), [0, 2, 3, 4]
    first = render_cache.cached_rows(how, chats, chosen, tmp_path)
    assert first == render_cache.render_rows(how, chats, chosen)
    monkeypatch.setattr(render_cache, "render_rows", lambda *_: pytest.fail("rendered twice"))
    assert render_cache.cached_rows(how, chats, chosen, tmp_path) == first
    monkeypatch.undo()
    longest = max(r.tokens for r in first.rows)
    shorter = dataclasses.replace(how, max_length=longest - 1)  # another limit, another key
    assert render_cache.cached_rows(shorter, chats, chosen, tmp_path).dropped == [4]
    for file in (tmp_path / "tokens").iterdir():
        file.write_bytes(b"broken")
    assert render_cache.cached_rows(how, chats, chosen, tmp_path) == first


def test_rows_depend_on_the_source_of_the_methods_that_a_method_uses(tmp_path: Path) -> None:
    """kto prepares pairs as preference does; a method of somebody else depends on its own file."""
    files = {file.name for file in render_cache._method_files(kto.prepare)}
    assert {"kto.py", "preference.py"} <= files
    assert files == {file.name for file in render_cache._method_files(METHODS["dpo"].prepare)}
    made = [RowRenderer(Template(byte_tokenizer()), METHODS[name].prepare, 512, "drop") for name in METHODS]
    keys = {render_cache._key(how, chat_rows(3), [0, 1]) for how in made}
    assert len(keys) == len({(how.prepare.__module__, how.prepare.__qualname__) for how in made}) > 5
    assert [file.name for file in render_cache._method_files(chat_rows)] == [Path(__file__).name]  # type: ignore[arg-type]


def test_rows_of_several_sequences_and_their_signals_are_read_back(tmp_path: Path) -> None:
    def prepare(template: Template, example: Any, row: int, limit: int | None) -> list[TrainRow]:
        (own,) = rendering.for_training(template, example, row)
        other = prompt_then_answer(own.ids[:3], own.ids[3:5], row)
        return [TrainRow((own, other), row, {"margin": np.float32([row, 0.5])})]

    how = RowRenderer(Template(byte_tokenizer()), prepare, 512, "error")
    first, again = (render_cache.cached_rows(how, chat_rows(3), [0, 1, 2], tmp_path) for _ in range(2))
    assert [r.sequences for r in again.rows] == [r.sequences for r in first.rows]
    assert digest(again.rows) == digest(first.rows)
    assert again.rows[2].signal["margin"].tolist() == [2.0, 0.5]
    assert render_cache.cached_rows(how, chat_rows(3), [0, 1, 2], tmp_path).dropped == []
