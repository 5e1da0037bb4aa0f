"""What a rendered conversation must contain: a chat template may silently drop tools, calls, results or thoughts.

The turn that is trained on must contain its message exactly; its calls must be readable from what is written. The
prompt before it must contain the tools and all messages in their order, except for the thoughts of earlier answers and
the words beside earlier calls: some templates leave these out, in serving too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from tunewright.core.errors import data_error
from tunewright.data import tool_calls
from tunewright.data.messages import THOUGHT_END, Chat, Json, Message, Tool, ToolCall, properties

TOOLS_FIX = "use a template that has tools: template=chatml-tools."
THOUGHTS_FIX = "use a template that prints thoughts: template=chatml-tools."
# As LFM2's templates write a text: in single quotes whatever it contains, and nothing else is escaped.
SINGLE_QUOTED = str.maketrans({"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r"})


def check_turn(chat: Chat, k: int, prompt: str, turn: str) -> None:
    """Raises TEMPLATE_LOSES_CONTENT unless ``turn`` contains assistant message k, and ``prompt`` all messages before
    it."""
    lost = lost_message(chat.messages[:k], prompt)
    if lost is not None:
        message = chat.messages[lost]
        what = f"drops or changes messages[{lost}] ({message.role})"
        plain = "put that text into the first user message, or use another template: template=chatml-tools."
        fix = TOOLS_FIX if message.role == "tool" or message.tool_calls else plain
        raise data_error("TEMPLATE_LOSES_CONTENT", _sentence(what), where=chat.where, fix=fix)
    message = chat.messages[k]
    thoughts, content = _split(message)
    if not contains(turn, thoughts):
        what = f"does not print the thoughts of messages[{k}]"
        raise data_error("TEMPLATE_LOSES_CONTENT", _sentence(what), where=chat.where, fix=THOUGHTS_FIX)
    if not contains(turn, content) or _after_calls(message.tool_calls, turn, 0) is None:
        what = f"drops or changes messages[{k}] (assistant)"
        fix = TOOLS_FIX if message.tool_calls else "use another template: template=chatml-tools, or template=FILE."
        raise data_error("TEMPLATE_LOSES_CONTENT", _sentence(what), where=chat.where, fix=fix)


def check_calls(chat: Chat, k: int, turn: str) -> None:
    """Raises TEMPLATE_TOOL_CALLS unless the calls of message k can be read back from ``turn``, without its end mark."""
    message = chat.messages[k]
    if message.tool_calls and not tool_calls.same(tool_calls.parse(turn, chat.tools)[1], message.tool_calls):
        what = f"writes the calls of messages[{k}] in a way from which they cannot be read back"
        fix = "use template=chatml-tools; if that does not help, leave the row out."
        raise data_error("TEMPLATE_TOOL_CALLS", _sentence(what), where=chat.where, fix=fix)


def _sentence(what: str) -> str:
    return f"the chat template {what}."


def check_tools(chat: Chat, prompt: str, without: str) -> None:
    """Raises TEMPLATE_LOSES_CONTENT unless ``prompt`` contains the tools of a chat. ``without``: the prompt when the
    template gets no tools."""
    for tool in chat.tools:
        name = tool["function"]["name"]
        if prompt == without or not all(contains(prompt, part) for part in described(tool)):
            what = f"does not print all of the tool {name!r}: its name, parameters and descriptions"
            raise data_error("TEMPLATE_LOSES_CONTENT", _sentence(what), where=chat.where, fix=TOOLS_FIX)


def described(tool: Tool) -> Iterator[Json]:
    """What a prompt must contain of a tool: its name and description; of its parameters the names, descriptions and
    allowed values; of what these contain, the names. gpt-oss writes no more of nested parameters."""
    function = tool["function"]
    parameters = function.get("parameters")
    yield function["name"]
    yield function.get("description") or ""
    yield from _names(parameters)
    for schema in properties(parameters).values():
        if isinstance(schema, dict):
            yield schema.get("description") or ""
            allowed = schema.get("enum")
            yield from allowed if isinstance(allowed, list) else ()


def _names(schema: Json) -> Iterator[Json]:
    """The names of parameters, at any depth."""
    for name, inner in properties(schema).items():
        yield name
        yield from _names(inner)
    if isinstance(schema, dict):
        yield from _names(schema.get("items"))


def lost_message(messages: tuple[Message, ...], text: str) -> int | None:
    """The place of the first message that ``text`` does not contain after those before it; None if there is none.

    Templates may print the system message anywhere, but the turns in their order. Every message is looked for at the
    first place where it can be, so one that is there is never reported.
    """
    at = 0
    for i, message in enumerate(messages):
        if message.role == "system":
            if not contains(text, message.content):
                return i
            continue
        content = "" if message.tool_calls else _split(message)[1]
        after = _after(content, text, at)
        after = None if after is None else _after_calls(message.tool_calls, text, after)
        if after is None:
            return i
        at = after
    return None


def contains(text: str, value: Json) -> bool:
    return _after(value, text, 0) is not None


def _after(value: Json, text: str, at: int) -> int | None:
    """Where a value ends that begins at ``at`` or later: as it is, as JSON, or as Python writes it; None if it is not
    there."""
    ends = [start + len(form) for form in _forms(value) if (start := text.find(form, at)) >= 0]
    return min(ends, default=None)


def _forms(value: Json) -> set[str]:
    if isinstance(value, str):
        bare = value.strip()
        quoted = bare.translate(SINGLE_QUOTED)
        return {bare, json.dumps(bare, ensure_ascii=False)[1:-1], json.dumps(bare)[1:-1], repr(bare)[1:-1], quoted}
    return {json.dumps(value), str(value)}


def _after_calls(calls: tuple[ToolCall, ...], text: str, at: int) -> int | None:
    """Where the calls end: each name, and after it every key and value of its arguments in any order."""
    for call in calls:
        after = _after(call.name, text, at)
        if after is None:
            return None
        ends = [_after(leaf, text, after) for leaf in leaves(call.arguments)]
        if any(end is None for end in ends):
            return None
        at = max((end for end in ends if end is not None), default=after)
    return at


def leaves(value: Json) -> Iterator[Json]:
    """Every key and every value in a JSON value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)
    else:
        yield value


def _split(message: Message) -> tuple[str, str]:
    """(thoughts, content) of a message; thoughts may also be written at the beginning of the content."""
    before, end, after = message.content.partition(THOUGHT_END)
    if message.role != "assistant" or message.reasoning or not end:
        return message.reasoning, message.content
    return before.partition("<think>")[2] or before, after
