"""Answers that call tools.

A call is compared as a list of fields: that the tool is called, and each of its arguments. Calls are matched one to one
like items of a list, and only calls of the same tool have fields in common: an argument of another tool is not right.

Rows may also be answered in words. Such a target has no calls, and an answer to it is right if it calls nothing; its
words are not judged, except by the strict match. So calling a tool where none should be called scores 0.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import replace

from tunewright.data import corpus_metrics
from tunewright.data.messages import Chat, Example, Json, Tool, ToolCall
from tunewright.data.metrics import METRICS
from tunewright.data.scores import Readings
from tunewright.data.structure import schema
from tunewright.data.structure.comparison import EMPTY, Comparison, Field, compare
from tunewright.data.structure.schema import Schema
from tunewright.data.task.kind import WRITTEN, Task, TaskKind
from tunewright.data.text import as_answer, exact
from tunewright.data.tool_calls import NOTATIONS, parse

FRACTION = 0.2  # of the answers are calls; with fewer, calls are exceptions in a task of another kind
MOST_TOOLS = 20  # that an instruction lists
NO_CALL = "(no call)"


def _detect(examples: Sequence[Example]) -> Task | None:
    calling = sum(bool(_calls(e)) for e in examples)
    if calling < FRACTION * len(examples) or not calling:
        return None
    return Task(TOOL_CALLS, METRICS["field_f1"], f"{calling} of {len(examples)} answers call tools")


def _calls(example: Example) -> tuple[ToolCall, ...]:
    """The calls of the target."""
    return example.messages[-1].tool_calls if example.messages else ()


def _tree(calls: Sequence[ToolCall]) -> list[Json]:
    """Calls as objects: {"search()": "search", "search().query": ...}."""
    return [{f"{c.name}()": c.name, **{f"{c.name}().{k}": v for k, v in c.arguments.items()}} for c in calls]


def _compare(task: Task, example: Example, answer: str) -> Comparison:
    return _compared(task, example, parse(answer, _tools(example))[1])


def _compared(task: Task, example: Example, calls: Sequence[ToolCall]) -> Comparison:
    fields = compare(_tree(_calls(example)), _tree(calls), task.rules)
    return Comparison(*(tuple(map(_named, part)) for part in (fields.right, fields.wrong, fields.missed)))


def _named(field: Field) -> Field:
    path, value = field
    return (NO_CALL if field == EMPTY else path.removeprefix("[]."), value)


def _read(task: Task, example: Example, answer: str) -> Readings:
    content, calls = parse(answer, _tools(example))
    compared = _compared(task, example, calls)
    same_words = as_answer(content) == as_answer(example.messages[-1].content)
    return Readings(
        exact_match=float(compared.equal),
        strict_match=float(compared.equal and same_words),
        fields=compared.counts,
        valid=_valid(example, content, calls),
    )


# -- validity


def _tools(example: Example) -> tuple[Tool, ...]:
    return example.tools if isinstance(example, Chat) else ()


def _valid(example: Example, content: str, calls: Sequence[ToolCall]) -> bool:
    """Whether an answer can be executed: every call can be read and is allowed. An answer without calls is valid only
    if the target has none."""
    unread = any(mark.search(content) for mark, _ in NOTATIONS)
    if unread or (not calls and bool(_calls(example))):
        return False
    return all(problem(call, _tools(example)) is None for call in calls)


def problem(call: ToolCall, tools: Sequence[Tool]) -> str | None:
    """Why a call is not allowed by the tools that its row declares; None if it is, or if none are declared. Parameters
    that are not a valid JSON Schema allow every argument."""
    if not tools:
        return None
    declared = next((t["function"] for t in tools if t["function"]["name"] == call.name), None)
    if declared is None:
        return f"the tool {call.name!r} is not declared"
    parameters = _parameters(json.dumps(declared.get("parameters") or {}, sort_keys=True))
    return None if parameters is None else parameters.violation(call.arguments)


@functools.lru_cache(4096)
def _parameters(text: str) -> Schema | None:
    """The JSON Schema of a tool's parameters; None if it is not valid."""
    value = json.loads(text)
    return Schema("parameters", value) if isinstance(value, dict) and schema.invalid(value) is None else None


def has_valid_parameters(tool: Tool) -> bool:
    return _parameters(json.dumps(tool["function"].get("parameters") or {}, sort_keys=True)) is not None


# -- instruction


def _instruct(task: Task, train: Sequence[Chat]) -> str:
    called: dict[str, dict[str, None]] = {}  # the names of arguments, each once, in the order of the rows
    for call in (c for e in train for c in _calls(e)):
        called.setdefault(call.name, {}).update(dict.fromkeys(call.arguments))
    signatures = [f"{name}({', '.join(arguments)})" for name, arguments in sorted(called.items())]
    listed = f" The tools: {'; '.join(signatures)}." if len(signatures) <= MOST_TOOLS else ""
    words = "" if all(map(_calls, train)) else " If no tool is needed, answer in words."
    return (
        'Answer with one line of JSON for each call of a tool, and nothing else: {"name": ..., "arguments": {...}}.'
        f"{listed}{words}"
    )


def _canonical(example: Example) -> str:
    """The words and the calls of a target, without the order of arguments."""
    if not example.messages:
        return ""
    calls = [{"name": c.name, "arguments": c.arguments} for c in _calls(example)]
    words = replace(example.messages[-1], tool_calls=()).text
    return exact(words + json.dumps(calls, sort_keys=True, ensure_ascii=False))


TOOL_CALLS = TaskKind(
    name="tool_calls",
    detect=_detect,
    read=_read,
    instruct=_instruct,
    corpus=corpus_metrics.FIELD_MICRO_F1,
    summary=("field_micro_f1", "valid_calls", *WRITTEN),
    compare=_compare,
    canonical=_canonical,
)
