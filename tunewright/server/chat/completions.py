"""chat.completions and completions: answers as objects and chunks of OpenAI's API."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from tunewright.server.chat import answers
from tunewright.server.chat.answers import Answer, Piece
from tunewright.server.chat.prompt import Asked
from tunewright.server.engine.choosing import TokenLogprob
from tunewright.server.errors import ApiError
from tunewright.server.shapes import JsonObject
from tunewright.server.store.database import new_id, now

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Reply:
    """The reply to one request: what all its objects have in common. ``with_ids``: whether token ids are shown;
    ``done``: answers that a stream has given out to their end."""

    asked: Asked
    id: str
    created: int
    with_ids: bool
    done: list[Answer] = field(default_factory=list)

    @classmethod
    def to(cls, asked: Asked, prefix: str, with_ids: bool | None) -> Reply:
        return cls(asked, new_id(prefix), now(), bool(with_ids))

    def head(self, kind: str) -> JsonObject:
        served = self.asked.served
        notes = {"tunewright": {"notes": list(self.asked.notes)}} if self.asked.notes else {}
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": served.id,
            "system_fingerprint": served.fingerprint,
            **notes,
        }

    def chat(self, done: Sequence[Answer]) -> JsonObject:
        choices = [
            {
                "index": a.index,
                "message": a.shown,
                "finish_reason": a.reason,
                "logprobs": self._chat_logprobs(a.logprobs),
                **({"token_ids": a.ids} if self.with_ids else {}),
            }
            for a in done
        ]
        return {**self.head("chat.completion"), "choices": choices, "usage": answers.usage(self.asked, done)}

    async def chat_stream(self, with_usage: bool) -> AsyncGenerator[bytes, None]:
        """Server-sent events. An error in the middle is an event, too, and the last one."""
        begun, done = set[int](), self.done

        def chunk(index: int, delta: JsonObject, reason: str | None, logprobs: Any) -> bytes:
            choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
            more = {"usage": None} if with_usage else {}
            return event({**self.head("chat.completion.chunk"), "choices": [choice], **more})

        try:
            async with aclosing(answers.together(self.asked)) as arriving:
                async for piece in arriving:
                    index, logprobs = piece.answer.index, self._chat_logprobs(piece.logprobs)
                    if index not in begun:
                        begun.add(index)
                        yield chunk(index, {"role": "assistant", "content": ""}, None, None)
                    delta = _delta(piece)
                    if delta or logprobs:
                        yield chunk(index, delta, None, logprobs)
                    if piece.last:
                        done.append(piece.answer)
                        yield chunk(index, {}, piece.answer.reason, None)
            if with_usage:
                total = answers.usage(self.asked, done)
                yield event({**self.head("chat.completion.chunk"), "choices": [], "usage": total})
            yield DONE
        except ApiError as error:
            if not begun:  # as a response of its own, with its status
                raise
            yield event(error.body())

    def _chat_logprobs(self, values: Sequence[TokenLogprob]) -> JsonObject | None:
        if not values:
            return None
        content = [
            {**self._token(v.token, v.logprob), "top_logprobs": [self._token(*pair) for pair in v.top]} for v in values
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> JsonObject:
        raw = self.asked.served.base.grammars.bytes_of(token)
        return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}

    def text(self, done: Sequence[Answer], prompt: str) -> list[JsonObject]:
        """The choices of a completion, after ``prompt``, if it is to be echoed."""
        return [
            {
                "index": a.index,
                "text": prompt + a.text,
                "finish_reason": a.reason,
                "logprobs": self._text_logprobs(a.logprobs, len(prompt)),
                **({"token_ids": a.ids} if self.with_ids else {}),
            }
            for a in done
        ]

    def _text_logprobs(self, values: Sequence[TokenLogprob], offset: int) -> JsonObject | None:
        if not values:
            return None

        def name(token: int) -> str:
            return self.asked.served.base.grammars.bytes_of(token).decode("utf-8", "replace")

        names, offsets = [name(v.token) for v in values], []
        for shown in names:
            offsets.append(offset)
            offset += len(shown)
        return {
            "tokens": names,
            "token_logprobs": [v.logprob for v in values],
            "top_logprobs": [{name(t): p for t, p in (*v.top, (v.token, v.logprob))} for v in values],
            "text_offset": offsets,
        }

    async def text_stream(self, index: int, prompt: str, with_usage: bool) -> AsyncGenerator[bytes, None]:
        """``index``: of the first choice of this prompt. ``with_usage``: whether usage follows, after all prompts."""
        begun: set[int] = set()
        offsets: dict[int, int] = defaultdict(int)

        def chunk(number: int, text: str, reason: str | None, logprobs: Any) -> bytes:
            choice = {"index": index + number, "text": text, "finish_reason": reason, "logprobs": logprobs}
            more = {"usage": None} if with_usage else {}
            return event({**self.head("text_completion"), "choices": [choice], **more})

        async with aclosing(answers.together(self.asked)) as arriving:
            async for piece in arriving:
                number = piece.answer.index
                if number not in begun:
                    begun.add(number)
                    if prompt:
                        yield chunk(number, prompt, None, None)
                if piece.text or piece.last:
                    reason = piece.answer.reason if piece.last else None
                    logprobs = self._text_logprobs(piece.logprobs, offsets[number])
                    offsets[number] += sum(map(len, logprobs["tokens"] if logprobs else ()))
                    yield chunk(number, piece.text, reason, logprobs)
                self.done.extend([piece.answer] if piece.last else [])


def _delta(piece: Piece) -> JsonObject:
    """The new content; when the answer has ended, its thoughts and calls, too."""
    delta: JsonObject = {"content": piece.text} if piece.text else {}
    if piece.last:
        message = piece.answer.shown
        if "reasoning_content" in message:
            delta["reasoning_content"] = message["reasoning_content"]
        if calls := message.get("tool_calls"):
            delta["tool_calls"] = [{"index": n, **call} for n, call in enumerate(calls)]
    return delta


def event(data: JsonObject) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
