"""The engine's events as answers: complete ones, or pieces of text as they become certain."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Literal

from tunewright.data.messages import Message, ToolCall
from tunewright.server.chat import schema
from tunewright.server.chat.prompt import Asked
from tunewright.server.engine.choosing import TokenLogprob
from tunewright.server.engine.generation import (
    Begun,
    Ended,
    EngineClosed,
    Event,
    Generation,
    NewToken,
    TooBusy,
    TooLong,
)
from tunewright.server.engine.requests import Backend
from tunewright.server.engine.text import AnswerText
from tunewright.server.errors import ApiError, bad, unexpected
from tunewright.server.shapes import JsonObject
from tunewright.server.store.database import new_id
from tunewright.tokens import rendering

RETRY_SECONDS = 2.0
THOUGHT = "<think>"
log = logging.getLogger(__name__)
Reason = Literal["stop", "length", "tool_calls"]


@dataclass
class Answer:
    """One answer, as far as it is known. ``message``: content, thoughts and calls, when it has ended."""

    index: int
    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    cached: int = 0
    reason: Reason | None = None
    message: Message = field(default_factory=lambda: Message("assistant", ""))
    shown: JsonObject = field(default_factory=dict)  # `message`, with the ids of its calls


@dataclass(frozen=True)
class Piece:
    """What is new of an answer: text, and the log-probabilities of its tokens. ``last``: whether the answer has
    ended."""

    answer: Answer
    text: str
    logprobs: tuple[TokenLogprob, ...]
    last: bool = False


async def events(engine: Backend, generation: Generation) -> AsyncGenerator[Event, None]:
    """Raises ApiError if the engine takes no more requests. Closing the iterator cancels the request."""
    loop, arrived = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def emit(event: Event) -> None:
        with suppress(RuntimeError):  # the loop may be closed, if the server is
            loop.call_soon_threadsafe(arrived.put_nowait, event)

    try:
        ticket = engine.submit(generation, emit)
    except TooBusy:
        raise ApiError(429, "server_busy", "As many requests wait as may wait.", retry_after=RETRY_SECONDS) from None
    except TooLong as error:
        raise bad("context_length_exceeded", f"A request may have {error.most} tokens.", "max_tokens") from None
    except EngineClosed:
        raise ApiError(503, "shutting_down", "The server is shutting down.", retry_after=RETRY_SECONDS) from None
    try:
        while True:
            event = await arrived.get()
            yield event
            if isinstance(event, Ended):
                return
    finally:
        ticket.cancel()


async def pieces(asked: Asked, index: int) -> AsyncGenerator[Piece, None]:
    """One answer, in pieces; only the last one where calls or thoughts must be read first. Raises ApiError."""
    generation, answer, sent = asked.generations[index], Answer(index), 0
    text, whole = AnswerText(asked.served.template, asked.stops), _whole(asked)
    pending: list[TokenLogprob] = []
    async with aclosing(events(asked.served.base.engine, generation)) as arriving:
        async for event in arriving:
            if isinstance(event, Begun):
                answer.cached = event.cached
            elif isinstance(event, NewToken):
                new = text.add(event.token)
                pending += [event.logprob] if event.logprob is not None else []
                if text.stopped:
                    break
                if new and not (whole or (asked.is_chat and _may_be_thought(text.text))):
                    yield Piece(answer, text.text[sent:], tuple(pending))
                    sent = len(text.text)
                    pending.clear()
            elif event.reason == "failed":
                raise _failed(event)
            else:
                answer.reason = event.reason
    text.finish()
    answer.text, answer.ids, answer.reason = text.text, text.ids, answer.reason or "stop"
    if asked.schema is not None and answer.reason == "stop" and not text.stopped:
        await schema.check(asked.schema, text.text)
    answer.message = _message(asked, text)
    answer.shown = message_json(answer.message)
    if answer.message.tool_calls and answer.reason != "length":  # calls after these may be missing
        answer.reason = "tool_calls"
    rest = text.text[sent:] if sent else answer.message.content
    yield Piece(answer, rest, tuple(pending), last=True)


async def complete(asked: Asked) -> list[Answer]:
    """All answers, in order. Raises ApiError."""

    async def answer(index: int) -> Answer:
        async with aclosing(pieces(asked, index)) as arriving:
            logprobs: list[TokenLogprob] = []
            async for piece in arriving:
                logprobs += piece.logprobs
                last = piece.answer
        last.logprobs = logprobs
        return last

    tasks = [asyncio.create_task(answer(n)) for n in range(len(asked.generations))]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def together(asked: Asked) -> AsyncGenerator[Piece, None]:
    """The pieces of all answers, as they arrive. Raises ApiError."""
    arrived: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()

    async def read(index: int) -> None:
        try:
            async with aclosing(pieces(asked, index)) as arriving:
                async for piece in arriving:
                    arrived.put_nowait(piece)
            arrived.put_nowait(None)
        except ApiError as error:
            arrived.put_nowait(error)
        except Exception as error:
            log.exception("an answer failed")
            arrived.put_nowait(unexpected(error))

    tasks = [asyncio.create_task(read(n)) for n in range(len(asked.generations))]
    try:
        unfinished = len(tasks)
        while unfinished:
            piece = await arrived.get()
            if isinstance(piece, Exception):
                raise piece
            if piece is None:
                unfinished -= 1
            else:
                yield piece
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _may_be_thought(text: str) -> bool:
    """Whether an answer so far is a thought, or the beginning of its mark: rows may have them, and the template not."""
    bare = text.lstrip()
    return bare.startswith(THOUGHT) or THOUGHT.startswith(bare)


def _whole(asked: Asked) -> bool:
    """Whether an answer can be read only as a whole: thoughts and calls are marked in its text."""
    thinks = "think" in str(asked.served.template.tokenizer.chat_template)
    return asked.is_chat and (bool(asked.tools) or thinks)


def _message(asked: Asked, text: AnswerText) -> Message:
    if not asked.is_chat:
        return Message("assistant", text.text)
    if text.stopped:
        return rendering.read_text(text.text, asked.tools)
    if asked.forced and (call := _call(text.text)) is not None:
        return Message("assistant", "", (call,))
    return rendering.read_answer(asked.served.template, text.ids, asked.tools)


def _failed(ended: Ended) -> ApiError:
    code = {400: "engine_refused", 503: "engine_unavailable"}.get(ended.status, "generation_failed")
    return ApiError(ended.status, code, ended.message, retry_after=RETRY_SECONDS if ended.status == 503 else None)


def _call(text: str) -> ToolCall | None:
    """The call that a grammar demanded; None, if it was cut off."""
    try:
        written = json.loads(text)
        return ToolCall(written["name"], written["arguments"])
    except (ValueError, KeyError, TypeError):
        return None


def usage(asked: Asked, answers: Sequence[Answer]) -> JsonObject:
    """``cached_tokens``: of the prompt, known already; of several answers, to the first."""
    prompt, written = len(asked.generations[0].prompt), sum(len(a.ids) for a in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": answers[0].cached if answers else 0},
    }


def message_json(message: Message) -> JsonObject:
    calls = [
        {
            "id": new_id("call_"),
            "type": "function",
            "function": {"name": c.name, "arguments": json.dumps(c.arguments, ensure_ascii=False)},
        }
        for c in message.tool_calls
    ]
    return {
        "role": "assistant",
        "content": message.content or (None if calls else ""),
        "refusal": None,
        **({"reasoning_content": message.reasoning} if message.reasoning else {}),
        **({"tool_calls": calls} if calls else {}),
    }
