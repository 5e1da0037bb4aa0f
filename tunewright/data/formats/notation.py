"""The names that data sets use for the fields of messages and for roles."""

from __future__ import annotations

from tunewright.data.messages import Json

# Name of a role -> ours.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "ipython": "tool",
    "function": "tool",
    "observation": "tool",
    "observations": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
CALL_ROLES = ("function_call", "tool_call")  # an assistant message whose content is its calls
ROLE = ("role", "from")
CONTENT = ("content", "value", "parts")
REASONING = ("reasoning_content", "reasoning", "thinking")
TRAINED = ("weight", "train", "training", "loss", "loss_scale")  # OpenAI, Axolotl (two names), ms-swift (two)
CALLS = ("tool_calls", "function_call")
RESULT = ("name", "tool_call_id")
REFUSAL = "refusal"  # OpenAI: the answer of a model that refuses
MEDIA = (
    "image_url",
    "image",
    "input_image",
    "input_audio",
    "audio",
    "video",
    "video_url",
    "file",
    "inlineData",
    "fileData",
)
EMPTY: tuple[Json, ...] = (None, "", [], {})


def first(item: dict[str, Json], fields: tuple[str, ...]) -> Json:
    """The value of the first of the fields that has one."""
    return next((item[f] for f in fields if item.get(f) is not None), None)


def role_of(item: dict[str, Json]) -> str | None:
    """Our name of a message's role; None if it is unknown."""
    named = first(item, ROLE)
    if not isinstance(named, str):
        return None
    return "assistant" if named in CALL_ROLES else ROLES.get(named)


def is_messages(value: Json) -> bool:
    """Whether a value is a list of messages, and not an answer that is a list of objects."""
    contents = {*CONTENT, *CALLS, REFUSAL}
    items = value if isinstance(value, list) else []
    return bool(items) and all(isinstance(m, dict) and first(m, ROLE) and contents & set(m) for m in items)


def is_empty_system(item: dict[str, Json]) -> bool:
    """Whether an item is a system message without a text: many exports have one in every row."""
    content = first(item, CONTENT)
    return role_of(item) == "system" and (content in EMPTY or (isinstance(content, str) and not content.strip()))


def given(item: dict[str, Json], fields: tuple[str, ...]) -> str | None:
    """The first of the fields that has a value that is not empty."""
    return next((f for f in fields if item.get(f) not in EMPTY), None)


def unread(item: dict[str, Json]) -> set[str]:
    """The fields of a message that have a value but no effect."""
    if not any(f in item for f in (*ROLE, *CONTENT)):
        return {f for f in item if f not in ROLES}
    role, named = role_of(item), first(item, ROLE)
    rest = {f for f, v in item.items() if v not in EMPTY} - {given(item, ROLE), given(item, CONTENT)}
    if named in CALL_ROLES:
        return rest - {*TRAINED}
    if role == "assistant":
        refusal = None if given(item, CONTENT) else REFUSAL
        return rest - {given(item, REASONING), given(item, CALLS), refusal, *TRAINED}
    # No other message is trained on, whatever its weight: a weight of 0 is in effect.
    return rest - {f for f in TRAINED if not item.get(f)} - set(RESULT if role == "tool" else ())
