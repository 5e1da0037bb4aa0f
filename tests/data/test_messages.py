"""What a message is compared by, what a row contains, and texts changed everywhere in a prompt."""

from __future__ import annotations

from tunewright.data.messages import Chat, Message, Prompt, ToolCall, map_texts

CALL = ToolCall("f", {"x": ["ü", 1, None], "y": {"z": True}}, "c1")
TOOL = {"type": "function", "function": {"name": "f", "description": "d"}}
CHAT = Chat(
    (
        Message("system", "s"),
        Message("user", "q"),
        Message("assistant", "w", (CALL,), reasoning="r"),
        Message("tool", "t", name="f", call_id="c1"),
        Message("assistant", "<think>\nh\n</think>\n\na"),
    ),
    "x:1",
    (TOOL,),
)


def test_an_answer_is_compared_without_its_thoughts_and_with_its_calls() -> None:
    assert CHAT.messages[2].text == 'w\n{"name": "f", "arguments": {"x": ["ü", 1, null], "y": {"z": true}}}'
    assert CHAT.target == "a"
    assert Message("user", "what is </think>?").text == "what is </think>?", "only assistants think"


def test_a_row_contains_its_thoughts() -> None:
    """The audit looks for private data in all of it."""
    assert all(text in CHAT.text for text in ("s", "q", "w", "r", "t", "h", "a", "ü"))
    assert "s" not in CHAT.question.split("\n")


def test_texts_are_changed_everywhere_and_nothing_else_is() -> None:
    prompt = CHAT.before(5)
    assert map_texts(prompt, lambda text: text) == prompt
    upper = map_texts(prompt, str.upper)
    assert upper.messages[2] == Message(
        "assistant", "W", (ToolCall("F", {"X": ["Ü", 1, None], "Y": {"Z": True}}, "C1"),), reasoning="R"
    )
    assert upper.messages[3] == Message("tool", "T", name="F", call_id="C1")
    assert upper.tools == ({"TYPE": "FUNCTION", "FUNCTION": {"NAME": "F", "DESCRIPTION": "D"}},)
    assert map_texts(Prompt(), str.upper) == Prompt()
