"""One item of a list of messages -> Messages: its role, content, tool calls, thoughts and weight.

OpenAI's notation (role/content), ShareGPT's (from/value) and pairs of turns (human/assistant) differ only in names.
"""

from __future__ import annotations

import difflib
from dataclasses import replace

from tunewright.core.errors import data_error
from tunewright.data.formats import notation, parts, tools
from tunewright.data.formats.fields import as_text, text, trained
from tunewright.data.formats.parts import Content
from tunewright.data.messages import Json, Message

Item = dict[str, Json]


def read(item: Json, name: str, where: str) -> list[Message]:
    """The messages of an item: usually one; a pair of turns has two, and Anthropic's results of calls have one each.

    Raises DATA_FIELD_TYPE, DATA_ROLE_UNKNOWN, DATA_EMPTY_TARGET, DATA_TOOL_CALL, DATA_WEIGHT or DATA_FORM_UNSUPPORTED.
    """
    if not isinstance(item, dict):
        fix = 'write {"role": ..., "content": ...}.'
        raise data_error("DATA_FIELD_TYPE", f"{name} is not an object.", where=where, fix=fix)
    pair = [key for key in item if key in notation.ROLES]
    if pair and not any(field in item for field in (*notation.ROLE, *notation.CONTENT)):
        return [Message(notation.ROLES[key], text(item[key], f"{name}.{key}", where)) for key in pair]
    named = notation.first(item, notation.ROLE)
    if named in notation.CALL_ROLES:
        return [_calls_alone(item, name, where)]
    role = _role(named, name, where)
    content = _content(item, role, name, where)
    _check_parts(content, role, name, where)
    if role == "user" and content.results:
        return [*content.results, *([Message("user", content.text)] if content.text.strip() else [])]
    message = _assistant(item, content, name, where) if role == "assistant" else _other(item, role, content)
    _check(message, item, name, where)
    return [message]


def _role(named: Json, name: str, where: str) -> str:
    role = notation.ROLES.get(named) if isinstance(named, str) else None
    if role is None:
        close = difflib.get_close_matches(str(named).lower(), notation.ROLES, n=1, cutoff=0.6)
        fix = f"did you mean {close[0]!r}?" if close else "roles are system, user, assistant and tool."
        raise data_error("DATA_ROLE_UNKNOWN", f"{name} has the role {named!r}.", where=where, fix=fix)
    return role


def _calls_alone(item: Item, name: str, where: str) -> Message:
    """A message whose content is its calls (ShareGPT, ms-swift)."""
    given = notation.first(item, notation.CONTENT)
    calls = tools.calls(given, f"{name}.{'value' if 'value' in item else 'content'}", where)
    return Message("assistant", "", calls, trained=_trained(item, None, name, where))


def _content(item: Item, role: str, name: str, where: str) -> Content:
    value = notation.first(item, (notation.given(item, notation.CONTENT) or "", *notation.CONTENT))
    field = notation.given(item, notation.CONTENT) or notation.CONTENT[0]
    if role == "tool" and not _is_parts(value):
        return Content(as_text(value))
    if isinstance(value, list):
        return parts.read(value, f"{name}.{field}", where)
    if value is None or (isinstance(value, str) and not value.strip()):
        return Content("")
    if role == "assistant" and isinstance(value, dict):
        return Content(as_text(value))  # an answer that is an object
    return Content(text(value, f"{name}.{field}", where))


def _check_parts(content: Content, role: str, name: str, where: str) -> None:
    """Raises DATA_TOOL_CALL or DATA_FIELD_TYPE for parts that have no meaning in a message of this role."""
    if role == "assistant":
        wrong = "results of tool calls" if content.results else ""
    else:
        wrong = "tool calls" if content.calls else "thoughts" if content.reasoning else ""
        wrong = "results of tool calls" if content.results and role != "user" else wrong
    if wrong:
        fix = "correct the role, or set data.invalid=drop."
        code = "DATA_FIELD_TYPE" if wrong == "thoughts" else "DATA_TOOL_CALL"
        raise data_error(code, f"{name}: parts of a {role} message are {wrong}.", where=where, fix=fix)


def _is_parts(value: Json) -> bool:
    return isinstance(value, list) and all(isinstance(v, dict) and v.get("type") in parts.TEXTS for v in value)


def _assistant(item: Item, content: Content, name: str, where: str) -> Message:
    field = notation.given(item, notation.CALLS)
    calls = tools.calls(item[field], f"{name}.{field}", where) if field else ()
    reasoning = _reasoning(item, name, where)
    if reasoning and content.reasoning not in ("", reasoning):
        fix = "keep one of them, or set data.invalid=drop."
        message = f"{name} has thoughts in its content and others in a field of their own."
        raise data_error("DATA_FIELD_TYPE", message, where=where, fix=fix)
    refusal = item.get(notation.REFUSAL)
    return Message(
        role="assistant",
        content=content.text or (refusal if isinstance(refusal, str) else ""),
        tool_calls=(*content.calls, *calls),
        reasoning=content.reasoning or reasoning,
        trained=_trained(item, content.trained, name, where),
    )


def _reasoning(item: Item, name: str, where: str) -> str:
    field = next((f for f in notation.REASONING if item.get(f)), None)
    if field is None:
        return ""
    value = item[field]
    given = parts.read(value, f"{name}.{field}", where).text if isinstance(value, list) else value
    return text(given, f"{name}.{field}", where) if given else ""


def _other(item: Item, role: str, content: Content) -> Message:
    message = Message(role, content.text)
    if role != "tool":
        return message
    return replace(message, name=str(item.get("name") or ""), call_id=str(item.get("tool_call_id") or ""))


def _check(message: Message, item: Item, name: str, where: str) -> None:
    """Raises DATA_TOOL_CALL for calls of another role, and DATA_EMPTY_TARGET."""
    if message.role != "assistant" and notation.given(item, notation.CALLS):
        fix = "only an assistant message can call tools."
        raise data_error("DATA_TOOL_CALL", f"{name}: a {message.role} message has tool calls.", where=where, fix=fix)
    if not message.content.strip() and not message.tool_calls and message.role != "tool":
        fix = "fill it in, or set data.empty=drop."
        raise data_error("DATA_EMPTY_TARGET", f"{name} ({message.role}) is empty.", where=where, fix=fix)


def _trained(item: Item, of_parts: bool | None, name: str, where: str) -> bool:
    """Whether an assistant message is a target, by its own weight or that of the parts of its content."""
    if any(isinstance(d, dict) and not d.get("train", True) for d in _list(item.get("train_detail"))):
        message = (
            f"{name}.train_detail excludes a part of the message; only a message as a unit can be trained on or not."
        )
        raise data_error("DATA_WEIGHT", message, where=where, fix="split the message, or set data.invalid=drop.")
    own = trained(item, name, where)
    if own is not None and of_parts is not None and own != of_parts:
        message = f"{name} and the parts of its content disagree on whether it is trained on."
        raise data_error("DATA_WEIGHT", message, where=where, fix="give it one weight, or set data.invalid=drop.")
    return all(flag is not False for flag in (own, of_parts))


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []
