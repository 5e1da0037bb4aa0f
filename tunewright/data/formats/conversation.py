"""Lists of messages -> Chats: calls and their results belong together, and the order of the turns is valid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from tunewright.core.errors import DataError, Problem, data_error
from tunewright.core.words import first_repeated
from tunewright.data.formats import message, notation
from tunewright.data.formats.fields import decoded
from tunewright.data.formats.notation import CALL_ROLES, ROLE, first
from tunewright.data.formats.row_format import RowSettings
from tunewright.data.messages import Chat, Json, Message, Tool, turns


def chat(messages: Sequence[Message], how: RowSettings, where: str, given: Sequence[Tool] = ()) -> Chat:
    """A Chat of messages in a valid order, with `data.instruction` where they have no system message. What follows the
    last trained message is left out: nothing is computed from it."""
    messages = paired(fixed(messages) if how.fix_turns else messages)
    _check_order(messages, where)
    head = (Message("system", how.instruction),) if how.instruction and messages[0].role != "system" else ()
    end = turns(messages)[-1] + 1
    return Chat((*head, *messages[:end]), where, tuple(given))


def read(value: Json, name: str, where: str) -> list[Message]:
    """The messages of a list, or of the JSON text of one. Raises DataError with all that is wrong in it."""
    value = decoded(value, name, where, "DATA_FIELD_TYPE")
    if value in notation.EMPTY:
        raise _empty(name, where)
    if not isinstance(value, list):
        fix = 'write [{"role": "user", "content": "..."}, ...].'
        raise data_error("DATA_FIELD_TYPE", f"{name!r} must be a list of messages.", where=where, fix=fix)
    messages: list[Message] = []
    problems: list[Problem] = []
    for i, item in enumerate(value):
        if isinstance(item, dict) and notation.is_empty_system(item):
            continue
        try:
            read_here = message.read(item, f"{name}[{i}]", where)
        except DataError as error:
            problems += error.problems
            continue
        alone = isinstance(item, dict) and first(item, ROLE) in CALL_ROLES
        if alone and messages and messages[-1].role == "assistant":
            messages[-1] = _with_calls(messages[-1], read_here[0])
        else:
            messages += read_here
    if problems:
        raise DataError(problems)
    if not messages:
        raise _empty(name, where)
    return messages


def _empty(name: str, where: str) -> DataError:
    fix = "fill it in, or set data.empty=drop."
    return data_error("DATA_EMPTY_TARGET", f"{name!r} is empty.", where=where, fix=fix)


def _with_calls(before: Message, more: Message) -> Message:
    """An assistant message and the calls that follow it in messages of their own: one turn. It is trained on unless one
    of them has weight 0."""
    trained = before.trained and more.trained
    return replace(before, tool_calls=(*before.tool_calls, *more.tool_calls), trained=trained)


def paired(messages: Sequence[Message]) -> list[Message]:
    """The messages, with the results of calls in the order of the calls and under the names of their functions: most
    templates print no ids, so a result belongs to the call in its place."""
    paired: list[Message] = []
    i = 0
    while i < len(messages):
        paired.append(messages[i])
        calls, i = messages[i].tool_calls, i + 1
        results = list(itertools.takewhile(lambda m: m.role == "tool", messages[i:])) if calls else []
        i += len(results)
        ids = {c.id: place for place, c in enumerate(calls) if c.id}
        places = [ids.get(m.call_id, place) for place, m in enumerate(results)]
        for place, m in sorted(zip(places, results, strict=True), key=lambda pair: pair[0]):
            name = calls[place].name if place < len(calls) else ""
            paired.append(m if m.name else replace(m, name=name))
    return paired


def fixed(messages: Sequence[Message]) -> list[Message]:
    """With neighbours of one role joined, and without what follows the last answer or precedes the first question.
    Answers of which one is a target and one is not remain two: joined, neither could be what it was."""
    joined: list[Message] = []
    for m in messages:
        last = joined[-1] if joined else None
        alike = last and (m.role, m.trained) == (last.role, last.trained) and m.role in ("system", "user", "assistant")
        if last and alike and not last.tool_calls:
            joined[-1] = _joined(last, m)
        else:
            joined.append(m)
    start = 1 if joined and joined[0].role == "system" else 0
    while len(joined) > start and joined[start].role != "user":
        del joined[start]
    while len(joined) > start and joined[-1].role != "assistant":
        del joined[-1]
    return joined


def _joined(a: Message, b: Message) -> Message:
    content, reasoning = (
        "\n\n".join(filter(None, texts)) for texts in ((a.content, b.content), (a.reasoning, b.reasoning))
    )
    return replace(b, content=content, reasoning=reasoning)


def untrained(messages: Sequence[Message]) -> list[Message]:
    """The messages as context: no assistant message among them is a target."""
    return [replace(m, trained=False) if m.role == "assistant" else m for m in messages]


def _check_order(messages: Sequence[Message], where: str) -> None:
    """Raises DATA_NOTHING_TO_LEARN, DATA_TURN_ORDER or DATA_EMPTY_TARGET."""
    if not turns(messages):
        assistant = any(m.role == "assistant" for m in messages)
        what = "every assistant message has weight 0" if assistant else "there is no assistant message"
        fix = "give one of them weight 1" if assistant else "add the answer as an assistant message"
        message = f"{what}, so there is nothing to train on."
        raise data_error("DATA_NOTHING_TO_LEARN", message, where=where, fix=f"{fix}, or set data.invalid=drop.")
    rest = messages[1:] if messages[0].role == "system" else messages
    problem, fix = _order(rest)
    if problem:
        raise data_error("DATA_TURN_ORDER", problem, where=where, fix=fix)
    if any(m.role == "assistant" and not m.text for m in messages):
        message = "an answer has thoughts and nothing else."
        raise data_error("DATA_EMPTY_TARGET", message, where=where, fix="add the answer, or set data.empty=drop.")


def _order(messages: Sequence[Message]) -> tuple[str, str]:
    """What is wrong with the order of the messages after the system message, and the fix; both empty if nothing is."""
    roles = [m.role for m in messages]
    if "system" in roles:
        return "a system message occurs after the first message.", "keep one system message, at the beginning."
    if roles[0] != "user":
        return "the conversation does not begin with the user.", "begin with a user message, or set data.turns=fix."
    for before, m in itertools.pairwise(messages):
        if m.role == "tool" and not (before.tool_calls or before.role == "tool"):
            return "a tool message does not follow a tool call.", "add the call before it, or set data.invalid=drop."
        if before.tool_calls and m.role != "tool":
            return "a tool call has no result.", "add its result, or set data.invalid=drop."
        if before.role == m.role == "assistant" and before.trained != m.trained:
            problem = "two assistant messages in a row, of which one is trained on and one is not."
            return problem, "remove one, give them one weight, or set data.invalid=drop."
        if before.role == m.role and m.role in ("user", "assistant"):
            fix = "add the missing turn between them, or set data.turns=fix, which joins them."
            return f"two {m.role} messages in a row.", fix
    return _unpaired(messages)


def _unpaired(messages: Sequence[Message]) -> tuple[str, str]:
    """Results without their call, or calls without their result, where ids tell."""
    fix = "correct the ids, or set data.invalid=drop."
    for i, m in enumerate(messages):
        ids = [c.id for c in m.tool_calls if c.id]
        results = [r.call_id for r in itertools.takewhile(lambda r: r.role == "tool", messages[i + 1 :])]
        if not ids or not results or not all(results):
            continue
        if twice := first_repeated(results):
            return f"the tool call {twice!r} has two results.", fix
        if unknown := next((r for r in results if r not in ids), None):
            return f"no tool call has the id {unknown!r} of a result.", fix
        if missing := next((c for c in ids if c not in results), None):
            return f"the tool call {missing!r} has no result.", fix
    return "", ""
