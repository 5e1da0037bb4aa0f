"""The names that rows of others use for roles and fields of messages."""

from __future__ import annotations

from typing import Any

# Name of a role -> ours.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
CALL_ROLES = ("function_call", "tool_call")  # an assistant message whose content is its calls
ROLE = ("role", "from")
CONTENT = ("content", "value")
REASONING = ("reasoning_content", "reasoning", "thinking")
TRAINED = ("weight", "train", "training", "loss")  # OpenAI, Axolotl (twice), ms-swift
CALLS = ("tool_calls", "function_call")
RESULT = ("name", "tool_call_id")
IMAGES = ("image_url", "image", "input_audio", "audio", "video", "file")


def role_of(item: dict[str, Any]) -> str | None:
    """Our name of a message's role; None if it is unknown."""
    named = next((item[f] for f in ROLE if f in item), None)
    return "assistant" if named in CALL_ROLES else ROLES.get(named) if isinstance(named, str) else None


def unread(item: dict[str, Any]) -> set[str]:
    """The fields of a message that have no effect."""
    by_role = {"assistant": (*REASONING, *TRAINED, *CALLS), "tool": RESULT}
    return set(item) - {*ROLE, *CONTENT, *by_role.get(role_of(item) or "", ())}
