"""Rows of every format become the same examples."""

from __future__ import annotations

import pytest

from tunewright.data import formats
from tunewright.data.formats import RowSettings
from tunewright.data.messages import Chat, Message
from tunewright.data.sources import Row

FORMATS = {
    "chat": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    "completion": {"prompt": "q", "completion": "a"},
    "instruction": {"instruction": "q", "input": "", "output": "a"},
    "label": {"text": "q", "label": "a"},
}


@pytest.mark.parametrize("name", list(FORMATS))
def test_all_formats_give_the_same_chat(name: str) -> None:
    parsed = formats.parse([Row({**FORMATS[name], "note": 1}, "x:1")])
    assert parsed.format == name
    assert parsed.unused == {"note": 1}
    (chat,) = parsed.examples
    assert isinstance(chat, Chat)
    assert [(m.role, m.content) for m in chat.messages] == [("user", "q"), ("assistant", "a")]


def test_columns_and_instruction() -> None:
    how = RowSettings(columns={"prompt": "ask", "completion": "reply"}, instruction="Be kind.")
    parsed = formats.parse([Row({"ask": "q", "reply": "a"}, "x:1")], how)
    assert parsed.examples[0].messages[0] == Message("system", "Be kind.")


def test_fields_of_messages_that_nothing_reads_are_counted() -> None:
    turns = [
        {"role": "user", "content": "q", "name": "anna", "weight": 0},
        {"role": "assistant", "content": "a", "weight": 1, "x": 2},
    ]
    parsed = formats.parse([Row({"messages": turns, "id": 7}, "x:1")])
    assert parsed.unused == {"id": 1, "messages[].name": 1, "messages[].weight": 1, "messages[].x": 1}
