"""Rows of every format become the same examples."""

from __future__ import annotations

import pytest

from tunewright.data import examples
from tunewright.data.examples import Chat, Message
from tunewright.data.sources import Row

FORMATS = {
    "chat": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    "completion": {"prompt": "q", "completion": "a"},
    "instruction": {"instruction": "q", "input": "", "output": "a"},
    "label": {"text": "q", "label": "a"},
}


@pytest.mark.parametrize("name", list(FORMATS))
def test_all_formats_give_the_same_chat(name: str) -> None:
    parsed = examples.parse([Row({**FORMATS[name], "note": 1}, "x:1")])
    assert parsed.format == name
    assert parsed.unused == {"note": 1}
    (chat,) = parsed.examples
    assert isinstance(chat, Chat)
    assert [(m.role, m.content) for m in chat.messages] == [("user", "q"), ("assistant", "a")]


def test_columns_and_instruction() -> None:
    parsed = examples.parse(
        [Row({"question": "q", "reply": "a"}, "x:1")],
        columns={"prompt": "question", "completion": "reply"},
        instruction="Be kind.",
    )
    assert parsed.examples[0].messages[0] == Message("system", "Be kind.")


def test_fields_of_messages_that_nothing_reads_are_counted() -> None:
    turns = [
        {"role": "user", "content": "q", "name": "anna", "weight": 0},
        {"role": "assistant", "content": "a", "weight": 1, "x": 2},
    ]
    parsed = examples.parse([Row({"messages": turns, "tools": []}, "x:1")])
    assert parsed.unused == {"tools": 1, "messages[].name": 1, "messages[].weight": 1, "messages[].x": 1}
