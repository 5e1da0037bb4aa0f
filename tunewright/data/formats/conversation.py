"""Lists of messages -> Chats: roles, contents, tool calls, thoughts, weights, and the order of turns.

OpenAI's notation (role/content) and ShareGPT's (from/value) differ only in the names.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tunewright.core.errors import DataError, Problem, data_error
from tunewright.data.formats import notation, tools
from tunewright.data.formats.fields import text, type_name
from tunewright.data.formats.row_format import RowSettings
from tunewright.data.messages import Chat, Message, Tool, turns


def chat(messages: Sequence[Message], how: RowSettings, where: str, given: Sequence[Tool] = ()) -> Chat:
    """A Chat of messages in a valid order, with `data.instruction` where they have no system message. What follows the
    last trained message is left out: nothing is computed from it."""
    messages = fixed(messages) if how.fix_turns else messages
    _check_order(messages, where)
    head = (Message("system", how.instruction),) if how.instruction and messages[0].role != "system" else ()
    end = turns(messages)[-1] + 1
    return Chat((*head, *messages[:end]), where, tuple(given))


def read(value: Any, name: str, where: str) -> list[Message]:
    """The messages of a list. Raises DataError with all that is wrong in it."""
    if not isinstance(value, list) or not value:
        fix = 'write [{"role": "user", "content": "..."}, ...].'
        raise data_error("DATA_FIELD_TYPE", f"{name!r} must be a list of messages.", where=where, fix=fix)
    messages: list[Message] = []
    problems: list[Problem] = []
    for i, item in enumerate(value):
        try:
            messages.append(message(item, f"{name}[{i}]", where))
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    return messages


def message(item: Any, name: str, where: str) -> Message:
    """One message. Raises DATA_FIELD_TYPE, DATA_ROLE_UNKNOWN, DATA_EMPTY_TARGET, DATA_TOOL_CALL, DATA_WEIGHT or
    DATA_FORM_UNSUPPORTED."""
    if not isinstance(item, dict):
        raise data_error(
            "DATA_FIELD_TYPE", f"{name} is not an object.", where=where, fix='write {"role": ..., "content": ...}.'
        )
    named = next((item[f] for f in notation.ROLE if f in item), None)
    content = next((item[f] for f in notation.CONTENT if f in item), None)
    if named in notation.CALL_ROLES:
        return Message(
            "assistant", "", tools.calls(content, f"{name}.value", where), trained=_trained(item, name, where)
        )
    role = _role(named, name, where)
    given = item.get("tool_calls") or item.get("function_call") or ()
    calls = tools.calls(given, f"{name}.tool_calls", where) if given else ()
    if calls and role != "assistant":
        fix = "only an assistant message can call tools."
        raise data_error("DATA_TOOL_CALL", f"{name}: a {role} message has tool calls.", where=where, fix=fix)
    thought = next((item[f] for f in notation.REASONING if item.get(f)), "")
    return Message(
        role=role,
        content=_content(content, role, f"{name}.content", where, may_be_empty=bool(calls) or role == "tool"),
        tool_calls=calls,
        reasoning=text(thought, f"{name}.reasoning_content", where) if thought and role == "assistant" else "",
        name=str(item.get("name") or "") if role == "tool" else "",
        call_id=str(item.get("tool_call_id") or "") if role == "tool" else "",
        trained=_trained(item, name, where) if role == "assistant" else True,
    )


def _role(named: Any, name: str, where: str) -> str:
    role = notation.ROLES.get(named) if isinstance(named, str) else None
    if role is None:
        close = difflib.get_close_matches(str(named).lower(), notation.ROLES, n=1, cutoff=0.6)
        fix = f"did you mean {close[0]!r}?" if close else "roles are system, user, assistant and tool."
        raise data_error("DATA_ROLE_UNKNOWN", f"{name} has the role {named!r}.", where=where, fix=fix)
    return role


def _content(value: Any, role: str, name: str, where: str, may_be_empty: bool) -> str:
    """The text of a content: text, or a list of text parts, which are joined by line breaks as servers do."""
    if isinstance(value, list):
        value = "\n".join(_part(part, f"{name}[{i}]", where) for i, part in enumerate(value))
    if may_be_empty and (value is None or (isinstance(value, str) and not value.strip())):
        return ""
    if isinstance(value, str) and not value.strip():
        raise data_error(
            "DATA_EMPTY_TARGET",
            f"{name.removesuffix('.content')} ({role}) is empty.",
            where=where,
            fix="fill it in, or set data.empty=drop.",
        )
    return text(value, name, where)


def _part(part: Any, name: str, where: str) -> str:
    if isinstance(part, dict) and part.get("type", "text") in ("text", "input_text", "output_text"):
        value = part.get("text")
        if isinstance(value, str):
            return value
    if isinstance(part, dict) and part.get("type") in notation.IMAGES:
        what = str(part["type"]).removesuffix("_url").removeprefix("input_")
        message = f"{name} is of type {part['type']!r}; {what} is not supported, only text."
        raise data_error(
            "DATA_FORM_UNSUPPORTED", message, where=where, fix="use rows of text, or set data.invalid=drop."
        )
    message = f"{name} is not a text part, but {type_name(part)}."
    raise data_error("DATA_FIELD_TYPE", message, where=where, fix='write {"type": "text", "text": "..."}.')


def _trained(item: dict[str, Any], name: str, where: str) -> bool:
    """Whether an assistant message is a target: `weight` (OpenAI), `train` (Axolotl) or `loss` (ms-swift)."""
    for field in notation.TRAINED:
        value = item.get(field)
        if value is None:
            continue
        if value not in (0, 1):
            message = f"{name}.{field} is {value!r}; a message is trained on (1, true) or not (0, false)."
            raise data_error("DATA_WEIGHT", message, where=where, fix="write 0 or 1.")
        return bool(value)
    return True


def fixed(messages: Sequence[Message]) -> list[Message]:
    """With neighbours of one role joined, and without what follows the last answer or precedes the first question."""
    joined: list[Message] = []
    for m in messages:
        last = joined[-1] if joined else None
        if last and m.role == last.role and m.role in ("system", "user", "assistant") and not last.tool_calls:
            content = "\n\n".join(part for part in (last.content, m.content) if part)
            joined[-1] = replace(m, content=content, reasoning=last.reasoning or m.reasoning)
        else:
            joined.append(m)
    start = 1 if joined and joined[0].role == "system" else 0
    while len(joined) > start and joined[start].role != "user":
        del joined[start]
    while len(joined) > start and joined[-1].role != "assistant":
        del joined[-1]
    return joined


def _check_order(messages: Sequence[Message], where: str) -> None:
    """Raises DATA_NOTHING_TO_LEARN or DATA_TURN_ORDER."""
    if not turns(messages):
        assistant = any(m.role == "assistant" for m in messages)
        what = "every assistant message has weight 0" if assistant else "there is no assistant message"
        fix = "give one of them weight 1." if assistant else "add the answer as an assistant message."
        raise data_error("DATA_NOTHING_TO_LEARN", f"{what}, so there is nothing to train on.", where=where, fix=fix)
    rest = messages[1:] if messages[0].role == "system" else messages
    message, fix = _order(rest)
    if message:
        raise data_error("DATA_TURN_ORDER", message, where=where, fix=fix)


def _order(messages: Sequence[Message]) -> tuple[str, str]:
    """What is wrong with the order of the messages after the system message, and the fix; both empty if nothing is."""
    roles = [m.role for m in messages]
    if "system" in roles:
        return "a system message occurs after the first message.", "keep one system message, at the beginning."
    if roles[0] != "user":
        return "the conversation does not begin with the user.", "begin with a user message."
    if roles[-1] != "assistant":
        return "the last message is not from the assistant.", "end the row with the answer, or set data.turns=fix."
    for before, message in itertools.pairwise(messages):
        pair = (before.role, message.role)
        if message.role == "tool" and not (before.tool_calls or before.role == "tool"):
            return "a tool message does not follow a tool call.", "add the assistant's call before it."
        if before.tool_calls and message.role != "tool":
            return "a tool call has no result.", "add the tool's message after it, or end the row with the call."
        if pair in (("user", "user"), ("assistant", "assistant")):
            return (
                f"two {message.role} messages in a row.",
                "add the missing turn between them, or set data.turns=fix, which joins them.",
            )
    return "", ""


def untrained(messages: Sequence[Message]) -> list[Message]:
    """The messages as context: no assistant message among them is a target."""
    return [replace(m, trained=False) if m.role == "assistant" else m for m in messages]
