"""A request for a chat as generations: messages through the template of training, the parameters as choices."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jsonschema import SchemaError
from jsonschema.validators import validator_for

from tunewright.core.errors import DataError, TunewrightError
from tunewright.data.formats import conversation, tools
from tunewright.data.messages import Prompt, Tool
from tunewright.data.sources import Row
from tunewright.server.chat.request import ChatRequest, Sampled
from tunewright.server.engine.choosing import Choosing
from tunewright.server.engine.generation import Generation
from tunewright.server.engine.grammar import ANY_OBJECT, UnsupportedSchema
from tunewright.server.errors import bad, of_error
from tunewright.server.models import Served
from tunewright.tokens import rendering

LEAST_TOP_P = 1e-9  # 0 means: the most probable token


@dataclass(frozen=True)
class Asked:
    """``generations``: one for each answer. ``schema``: what the answer must match, if anything; with ``forced``, it is
    that of a call."""

    served: Served
    generations: tuple[Generation, ...]
    stops: tuple[str, ...]
    tools: tuple[Tool, ...] = ()
    schema: Mapping[str, Any] | None = None
    forced: bool = False
    is_chat: bool = True
    notes: tuple[str, ...] = ()


def of_chat(request: ChatRequest, served: Served, tenant: str) -> Asked:
    """Raises ApiError."""
    request.check()
    prompt = _prompt(request)
    schema, forced = _schema(request), _forced(request, prompt.tools)
    if schema is not None and prompt.tools:
        raise bad("unsupported_parameter", "response_format cannot be combined with tools.", "response_format")
    schema = schema or forced
    try:
        ids = rendering.for_generation(served.template, prompt)
        if prompt.tools and ids == rendering.for_generation(served.template, replace(prompt, tools=())):
            raise bad("unsupported_parameter", "tools: the model's chat template has no place for them.", "tools")
    except TunewrightError as error:
        raise of_error(error, "messages") from None
    except (TypeError, UnicodeError):
        raise bad("invalid_value", "messages: the text has a lone surrogate.", "messages") from None
    grammar = None
    if schema is not None:
        try:
            validator_for(schema).check_schema(schema)
        except (SchemaError, AttributeError, TypeError, ValueError) as error:  # $schema may be anything
            param, what = "tools" if forced else "response_format", getattr(error, "message", str(error))
            raise bad("invalid_json_schema", f"Not a JSON schema: {what}", param) from None
        try:
            grammar = served.base.grammars.compiled(schema)
        except UnsupportedSchema as error:
            param = "tools" if forced else "response_format.json_schema.schema"
            message = f"The schema cannot be enforced, at {error.path}: {error}"
            raise bad("invalid_json_schema", message, f"{param}{error.path.removeprefix('#')}") from None
    generation = replace(
        generation_of(request, served, tenant, ids, request.limit), grammar=grammar, logprobs=request.top
    )
    answers = several(generation, request.n or 1)
    notes = _notes(served, prompt)
    return Asked(served, answers, tuple(request.stops), prompt.tools, schema, forced is not None, notes=notes)


def generation_of(request: Sampled, served: Served, tenant: str, ids: Sequence[int], limit: int | None) -> Generation:
    """The first answer to a prompt. Without a limit, it may fill the context. Raises ApiError."""
    most = served.base.engine.most_tokens
    room = most - len(ids)
    if room < 1 or (limit or 1) > room:
        asked = f"{len(ids)} tokens of the prompt" + (f" and {limit} of the answer" if limit else "")
        raise bad(
            "context_length_exceeded", f"The model's context has {most} tokens; {asked} are too many.", "messages"
        )
    return Generation(
        prompt=tuple(ids),
        max_tokens=limit or room,
        stop=served.base.stop,
        tenant=tenant,
        adapter=served.adapter,
        scale=served.scale,
        choosing=_choosing(request, served),
    )


def several(generation: Generation, count: int) -> tuple[Generation, ...]:
    """Answers to one prompt, which differ if their tokens are drawn."""
    return tuple(replace(generation, choosing=generation.choosing.nth(n)) for n in range(count))


def _choosing(request: Sampled, served: Served) -> Choosing:
    sampling = served.sampling
    penalty = request.repetition_penalty or request.repeat_penalty
    if penalty is not None:
        sampling = replace(sampling, repetition_penalty=penalty)
    if request.temperature is not None:
        sampling = replace(sampling, temperature=request.temperature)
    if request.seed is not None:
        sampling = replace(sampling, seed=request.seed)
    elif request.temperature:
        sampling = replace(sampling, seed=secrets.randbits(48))
    return Choosing(
        sampling,
        top_p=1.0 if request.top_p is None else max(request.top_p, LEAST_TOP_P),
        presence=request.presence_penalty or 0.0,
        frequency=request.frequency_penalty or 0.0,
        bias=_bias(request.logit_bias or {}, served),
    )


def _bias(given: Mapping[str, float], served: Served) -> tuple[tuple[int, float], ...]:
    vocabulary = served.base.facts.vocabulary
    for token in given:
        if not (token.isascii() and token.isdigit() and len(token) < 10 and int(token) < vocabulary):
            message = f"logit_bias: {token[:40]!r} is not the id of one of {vocabulary} tokens."
            raise bad("invalid_value", message, "logit_bias")
    return tuple((int(token), value) for token, value in given.items())


def _prompt(request: ChatRequest) -> Prompt:
    """The messages as a row of training data has them: `developer` is a system message, contents may be parts."""
    choice = request.tool_choice
    if request.parallel_tool_calls is False and choice in (None, "auto"):
        message = "parallel_tool_calls=false cannot be enforced: the model may write several calls."
        raise bad("unsupported_parameter", message, "parallel_tool_calls")
    try:
        messages = conversation.paired(conversation.read([*request.messages], "messages", ""))
        given = tools.of_row(Row({"tools": request.tools}, "")) if request.tools and choice != "none" else ()
    except DataError as error:
        problem = error.problems[0]
        raise bad(problem.code, problem.message, "messages") from None
    if messages[-1].role == "assistant":
        message = "The last message is the assistant's: a beginning of an answer cannot be continued."
        raise bad("invalid_value", message, "messages")
    return Prompt(tuple(replace(m, trained=False) for m in messages), given)


def _forced(request: ChatRequest, given: Sequence[Tool]) -> Mapping[str, Any] | None:
    """The schema of a call, if `tool_choice` demands one: of the function that it names, or of any."""
    choice = request.tool_choice
    if choice in (None, "auto", "none"):
        return None
    functions = {tool["function"]["name"]: tool["function"] for tool in given}
    if isinstance(choice, dict):
        named = choice.get("function")
        name = named.get("name") if isinstance(named, dict) else None
        functions = {name: functions[name]} if isinstance(name, str) and name in functions else {}
    if not functions:
        raise bad("invalid_value", "tool_choice: it names none of the tools.", "tool_choice")
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": function.get("parameters") or ANY_OBJECT},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name, function in functions.items()
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def _schema(request: ChatRequest) -> Mapping[str, Any] | None:
    form = request.response_format or {"type": "text"}
    kind = form.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return ANY_OBJECT
    given = form.get("json_schema") if kind == "json_schema" else None
    schema = given.get("schema") if isinstance(given, dict) else None
    if not isinstance(schema, dict):
        message = "response_format: text, json_object or json_schema, which has {json_schema: {name, schema}}."
        raise bad("invalid_value", message, "response_format")
    return schema


def _notes(served: Served, prompt: Prompt) -> tuple[str, ...]:
    """What the client may have overlooked."""
    has_system = any(m.role == "system" for m in prompt.messages)
    if served.instruction and not has_system:
        return ("the model was trained with a system message, and this request has none",)
    return ()
