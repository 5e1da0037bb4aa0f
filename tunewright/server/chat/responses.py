"""/v1/responses without state: a request as one for a chat, its answer as OpenAI's Response and as its events.

Nothing is stored, so `store` is answered with false, and a request that builds on an earlier one is refused.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, JsonValue, StringConstraints, ValidationError

from tunewright.server.chat import answers
from tunewright.server.chat.answers import Answer
from tunewright.server.chat.completions import Reply
from tunewright.server.chat.request import ChatRequest, Count, Declared, Object
from tunewright.server.errors import ApiError, bad, of_validation
from tunewright.server.jobs.request import Metadata
from tunewright.server.shapes import JsonObject
from tunewright.server.store.database import new_id

Text = Annotated[str, StringConstraints(min_length=1)]
ToolChoice = Literal["none", "auto", "required"] | Object
Items = Annotated[list[Object], Field(min_length=1, max_length=2048)]
TEXTS = ("input_text", "output_text")  # types of parts
OF_SCHEMA = ("name", "schema", "strict", "description")  # fields of a format


class ResponseRequest(Declared):
    IGNORED: ClassVar[tuple[str, ...]] = (
        *("user", "safety_identifier", "service_tier", "prompt_cache_key", "prompt_cache_retention", "reasoning"),
        *("prompt_cache_options", "include", "stream_options", "truncation", "store", "max_tool_calls"),
        *("access_programs", "background_options"),
    )
    REFUSED: ClassVar[dict[str, str]] = {
        "previous_response_id": "responses are not stored; send the whole conversation as input",
        "conversation": "conversations are not stored; send the whole conversation as input",
        "prompt": "there are no stored prompts",
        "context_management": "the context is what input has",
        "moderation": "answers are not moderated",
        "image": "models answer in text",
        "top_logprobs": "log-probabilities are a part of chat.completions",
    }

    model: Annotated[str, Field(min_length=1, max_length=300)]
    input: Text | Items
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    text: Object | None = None
    tools: Annotated[list[Object], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    metadata: Metadata | None = None
    stream: bool | None = None
    background: bool | None = None

    def as_chat(self) -> ChatRequest:
        """Raises ApiError."""
        self.check_names()
        if self.background:
            raise bad("unsupported_parameter", "background: use /v1/batches.", "background")
        head: list[Object] = [{"role": "system", "content": self.instructions}] if self.instructions else []
        turns: list[Object] = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else []
        if not turns and not isinstance(self.input, str):
            turns = _turns(self.input)
        try:
            return self._chat([*head, *turns])
        except ValidationError as error:
            raise of_validation(error.errors()) from None

    def _chat(self, messages: list[Object]) -> ChatRequest:
        return ChatRequest(
            model=self.model,
            messages=messages,
            max_completion_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            response_format=self._format(),
            tools=[_tool(tool) for tool in self.tools] if self.tools else None,
            tool_choice=_choice(self.tool_choice),
            parallel_tool_calls=None if self.parallel_tool_calls else self.parallel_tool_calls,
        )

    def _format(self) -> Object | None:
        form = (self.text or {}).get("format")
        if not isinstance(form, dict) or form.get("type") != "json_schema":
            return form if isinstance(form, dict) else None
        return {"type": "json_schema", "json_schema": {k: form[k] for k in OF_SCHEMA if k in form}}


def _turns(items: Items) -> list[Object]:
    """Calls that follow an answer, or one another, belong to one turn of the assistant."""
    turns: list[Object] = []
    for number, item in enumerate(items):
        message = _message(item, number)
        last = turns[-1] if turns else {}
        if item.get("type") == "function_call" and last.get("role") == "assistant":
            before, more = last.get("tool_calls"), message["tool_calls"]
            assert isinstance(more, list)
            turns[-1] = {**last, "tool_calls": [*(before if isinstance(before, list) else []), *more]}
        else:
            turns.append(message)
    return turns


def _choice(choice: ToolChoice | None) -> ToolChoice | None:
    """A function is named by a field of its own in the chat's form."""
    if isinstance(choice, dict) and "name" in choice and "function" not in choice:
        return {"type": choice.get("type"), "function": {"name": choice["name"]}}
    return choice


def _message(item: Object, number: int) -> Object:
    """An item of the input as a message of a chat."""
    kind = item.get("type", "message")
    if kind == "function_call":
        call: JsonValue = {
            "id": item.get("call_id"),
            "type": "function",
            "function": {"name": item.get("name"), "arguments": item.get("arguments")},
        }
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if kind == "function_call_output":
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
    if kind == "reasoning":
        raise bad("unsupported_parameter", f"input.{number}: thoughts of earlier answers are not read.", "input")
    if kind != "message":
        raise bad(
            "unsupported_parameter", f"input.{number}: items of type {str(kind)[:40]!r} are not supported.", "input"
        )
    content = item.get("content")
    parts = content if isinstance(content, list) else []
    named: JsonValue = [
        {"type": "text", "text": p.get("text")} if isinstance(p, dict) and p.get("type") in TEXTS else p for p in parts
    ]
    return {"role": item.get("role"), "content": named if parts else content}


def _tool(tool: Object) -> Object:
    if tool.get("type") != "function":
        raise bad(
            "unsupported_parameter", f"tools: {str(tool.get('type'))[:40]!r} is not supported; function is.", "tools"
        )
    return {
        "type": "function",
        "function": {k: v for k, v in tool.items() if k in ("name", "description", "parameters")},
    }


@dataclass(frozen=True)
class ResponseReply:
    """``reply``: of the chat."""

    request: ResponseRequest
    reply: Reply
    id: str
    item: str

    @classmethod
    def to(cls, request: ResponseRequest, reply: Reply) -> ResponseReply:
        return cls(request, reply, new_id("resp_"), new_id("msg_"))

    def body(self, status: str, answer: Answer | None = None) -> JsonObject:
        r, served = self.request, self.reply.asked.served
        cut = answer is not None and answer.reason == "length"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.reply.created,
            "status": "incomplete" if cut else status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": r.instructions,
            "max_output_tokens": r.max_output_tokens,
            "metadata": r.metadata or {},
            "model": served.id,
            "output": list(self.output(answer)) if answer is not None else [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "temperature": r.temperature,
            "text": r.text or {"format": {"type": "text"}},
            "tool_choice": r.tool_choice or "auto",
            "tools": r.tools or [],
            "top_p": r.top_p,
            "usage": self._usage(answer) if answer is not None else None,
        }

    def output(self, answer: Answer) -> Iterator[JsonObject]:
        message = answer.shown
        if message["content"] or not message.get("tool_calls"):
            yield self._text_item(answer.message.content, "completed")
        for call in message.get("tool_calls", ()):
            yield {
                "id": call["id"].replace("call_", "fc_"),
                "type": "function_call",
                "call_id": call["id"],
                "status": "completed",
                **call["function"],
            }

    def _text_item(self, text: str, status: str) -> JsonObject:
        content = [] if status == "in_progress" else [_part(text)]
        return {"id": self.item, "type": "message", "role": "assistant", "status": status, "content": content}

    def _usage(self, answer: Answer) -> JsonObject:
        total = answers.usage(self.reply.asked, [answer])
        return {
            "input_tokens": total["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": answer.cached},
            "output_tokens": total["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": total["total_tokens"],
        }

    async def complete(self) -> JsonObject:
        """Raises ApiError."""
        (answer,) = await answers.complete(self.reply.asked)
        return self.body("completed", answer)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The events of OpenAI's API, numbered."""
        number = -1

        def event(kind: str, **data: Any) -> bytes:
            nonlocal number
            number += 1
            body = json.dumps({"type": kind, "sequence_number": number, **data}, ensure_ascii=False)
            return f"event: {kind}\ndata: {body}\n\n".encode()

        at = {"item_id": self.item, "output_index": 0, "content_index": 0}
        try:
            opened = begun = False
            async with aclosing(answers.pieces(self.reply.asked, 0)) as arriving:
                async for piece in arriving:
                    answer = piece.answer
                    if not begun:
                        begun = True
                        yield event("response.created", response=self.body("in_progress"))
                        yield event("response.in_progress", response=self.body("in_progress"))
                    calls = piece.last and "tool_calls" in answer.shown
                    if (piece.text or (piece.last and not calls)) and not opened:
                        opened = True
                        item = self._text_item("", "in_progress")
                        yield event("response.output_item.added", output_index=0, item=item)
                        yield event("response.content_part.added", **at, part=_part(""))
                    if piece.text:
                        yield event("response.output_text.delta", **at, delta=piece.text, logprobs=[])
            for kind, data in self._endings(answer, opened):
                yield event(kind, **data)
            body = self.body("completed", answer)
            yield event(f"response.{body['status']}", response=body)
        except ApiError as error:
            if not begun:
                raise
            body = self.body("failed")
            body["error"] = {"code": "server_error", "message": error.message}
            yield event("response.failed", response=body)

    def _endings(self, answer: Answer, opened: bool) -> Iterator[tuple[str, JsonObject]]:
        """The events between the last piece of text and the whole response."""
        if opened:
            text = answer.message.content
            at = {"item_id": self.item, "output_index": 0, "content_index": 0}
            yield "response.output_text.done", {**at, "text": text, "logprobs": []}
            yield "response.content_part.done", {**at, "part": _part(text)}
        for index, item in enumerate(self.output(answer)):
            if item["type"] == "function_call":
                yield "response.output_item.added", {"output_index": index, "item": item}
                done = {"name": item["name"], "arguments": item["arguments"]}
                place = {"item_id": item["id"], "output_index": index}
                yield "response.function_call_arguments.done", {**place, **done}
            yield "response.output_item.done", {"output_index": index, "item": item}


def _part(text: str) -> JsonObject:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
