"""Tool definitions and tool calls, in the notations that are in use, as OpenAI's API has them today.

tools        [{"type": "function", "function": {"name": ..., "parameters": ...}}], or without the wrapping
functions    the same, before tools (`functions`, `function_call`, role `function`)
input_schema Anthropic's name of the parameters
arguments    an object, or the text of one
"""

from __future__ import annotations

from tunewright.core.errors import DataError, data_error
from tunewright.core.words import first_repeated
from tunewright.data.files.values import type_name
from tunewright.data.formats.fields import decoded
from tunewright.data.messages import Json, Tool, ToolCall
from tunewright.data.sources import Row

FIELDS = ("tools", "functions")


def of_row(row: Row) -> tuple[Tool, ...]:
    """The tools of a row, from the field ``tools`` or ``functions``."""
    given: Json = next((row.data[f] for f in FIELDS if row.data.get(f) not in (None, "", [])), [])
    value = decoded(given, "tools", row.where)
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list):
        raise _problem(f"'tools' must be a list, not {type_name(value)}.", row.where, "write a list of functions.")
    tools = tuple(_tool(decoded(item, f"tools[{i}]", row.where), i, row.where) for i, item in enumerate(value))
    if twice := first_repeated([tool["function"]["name"] for tool in tools]):
        raise _problem(f"two tools have the name {twice!r}.", row.where, "remove one, or set data.invalid=drop.")
    return tools


def _tool(item: Json, i: int, where: str) -> Tool:
    function = item.get("function", item) if isinstance(item, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        fix = 'write {"type": "function", "function": {"name": ..., "parameters": {...}}}.'
        kind = item.get("type") if isinstance(item, dict) else None
        if isinstance(kind, str) and kind not in ("function", "custom"):
            message = f"tools[{i}] is of type {kind[:40]!r}, which a server provides; only functions are supported."
            raise _problem(message, where, "leave it out of the tools, or set data.invalid=drop.")
        raise _problem(f"tools[{i}] has no function name.", where, fix)
    name = "input_schema" if "input_schema" in function else "parameters"
    parameters = decoded(function.get(name), f"tools[{i}].{name}", where)
    if parameters is not None and not isinstance(parameters, dict):
        fix = 'write {"type": "object", "properties": {...}}.'
        raise _problem(f"tools[{i}].{name} must be an object, not {type_name(parameters)}.", where, fix)
    renamed = {"parameters" if k == name else k: parameters if k == name else v for k, v in function.items()}
    return {"type": "function", "function": {k: v for k, v in renamed.items() if k != "type"}}


def calls(value: Json, name: str, where: str) -> tuple[ToolCall, ...]:
    """The calls of an assistant message: one call or a list, as a value or as the text of one."""
    given = decoded(value, name, where)
    items = given if isinstance(given, list) else [given]
    return tuple(call(item, f"{name}[{i}]", where) for i, item in enumerate(items))


def call(item: Json, name: str, where: str) -> ToolCall:
    function = item.get("function", item) if isinstance(item, dict) else None
    called = function.get("name") if isinstance(function, dict) else None
    if not isinstance(item, dict) or not isinstance(function, dict) or not isinstance(called, str) or not called:
        fix = 'write {"function": {"name": ..., "arguments": {...}}}.'
        raise _problem(f"{name} has no function name.", where, fix)
    arguments = decoded(function.get("arguments", function.get("parameters")) or {}, f"{name}.arguments", where)
    if not isinstance(arguments, dict):
        raise _problem(f"{name}.arguments must be an object, not {type_name(arguments)}.", where, "name each argument.")
    identity = item.get("id")
    return ToolCall(called, arguments, identity if isinstance(identity, str) else "")


def _problem(message: str, where: str, fix: str) -> DataError:
    return data_error("DATA_TOOL_CALL", message, where=where, fix=fix)
