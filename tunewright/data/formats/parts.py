"""Contents of messages that are lists of parts: texts, thoughts, and Anthropic's blocks for tool calls and results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunewright.core.errors import data_error
from tunewright.data.files.values import type_name
from tunewright.data.formats import notation, tools
from tunewright.data.formats.fields import as_text, trained
from tunewright.data.messages import Json, Message, ToolCall

TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}  # type -> field
THOUGHTS = {"thinking": "thinking", "reasoning": "text"}


@dataclass(frozen=True)
class Content:
    """What a content has: a text, thoughts, calls, results of calls. ``trained``: None if the parts do not say."""

    text: str
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    results: tuple[Message, ...] = ()
    trained: bool | None = None


def read(parts: Sequence[Json], name: str, where: str) -> Content:
    """The parts of a content. Texts are joined by line breaks, as servers do."""
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    results: list[Message] = []
    for i, part in enumerate(parts):
        place = f"{name}[{i}]"
        kind = _kind(part) if isinstance(part, dict) else None
        if not isinstance(part, dict) or not isinstance(kind, str):
            message = f"{place} is not a part of a message, but {type_name(part)}."
            raise data_error("DATA_FIELD_TYPE", message, where=where, fix='write {"type": "text", "text": "..."}.')
        if kind in TEXTS:
            texts.append(_text(part, TEXTS[kind], place, where))
        elif kind in THOUGHTS:
            thoughts.append(_text(part, THOUGHTS[kind], place, where))
        elif kind == "tool_use":
            calls.append(tools.call({**part, "arguments": part.get("input")}, place, where))
        elif kind == "tool_result":
            results.append(_result(part, place, where))
        else:
            raise _unsupported(kind, place, where)
    return Content("\n".join(texts), "\n".join(thoughts), tuple(calls), tuple(results), _trained(parts, name, where))


def _kind(part: dict[str, Json]) -> Json:
    """The type of a part. Those of Gemini and Bedrock are named by their field."""
    return part.get("type", "text" if "text" in part else next(iter(part), "text"))


def _text(part: dict[str, Json], field: str, name: str, where: str) -> str:
    value = part.get(field)
    if not isinstance(value, str):
        message = f"{name}.{field} must be text, not {type_name(value)}."
        raise data_error("DATA_FIELD_TYPE", message, where=where, fix="write it as text, in quotes.")
    return value


def _result(part: dict[str, Json], name: str, where: str) -> Message:
    content = part.get("content")
    parts = isinstance(content, list) and all(isinstance(c, dict) and "type" in c for c in content)
    text = read(content, f"{name}.content", where).text if parts and isinstance(content, list) else as_text(content)
    return Message("tool", text, call_id=str(part.get("tool_use_id") or ""))


def _unsupported(kind: str, name: str, where: str) -> Exception:
    if kind in notation.MEDIA:
        message = f"{name} is of type {kind!r}; only text is supported."
        fix = "use rows of text, or set data.invalid=drop."
        return data_error("DATA_FORM_UNSUPPORTED", message, where=where, fix=fix)
    message = f"{name} has the unknown type {kind!r}."
    return data_error("DATA_FIELD_TYPE", message, where=where, fix='write {"type": "text", "text": "..."}.')


def _trained(parts: Sequence[Json], name: str, where: str) -> bool | None:
    """Whether the parts are targets (Axolotl); None if they do not say. All of a message is trained on, or nothing."""
    flags = {trained(part, f"{name}[{i}]", where) for i, part in enumerate(parts) if isinstance(part, dict)}
    if len(flags) > 1:
        message = f"the parts of {name} have different weights; only a message as a unit can be trained on or not."
        fix = "give the parts one weight, or set data.invalid=drop."
        raise data_error("DATA_WEIGHT", message, where=where, fix=fix)
    return next(iter(flags), None)
