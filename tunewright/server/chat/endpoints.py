"""What the endpoints answer: to a request over HTTP, or to a line of a batch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from tunewright.server.chat import answers
from tunewright.server.chat.answers import Answer
from tunewright.server.chat.completions import DONE, Reply, event
from tunewright.server.chat.prompt import Asked, generation_of, of_chat, several
from tunewright.server.chat.request import ChatRequest, CompletionRequest
from tunewright.server.errors import ApiError, bad
from tunewright.server.models import Served
from tunewright.server.shapes import JsonObject

MOST_PROMPTS = 64
RENDERING = ThreadPoolExecutor(1, thread_name_prefix="rendering")
T = TypeVar("T")
NEW_TOKENS = 16  # of a completion without max_tokens, as in OpenAI's API


async def rendered(of: Callable[..., T], *given: object) -> T:
    """``of`` renders and tokenizes, which may take long: not in the event loop, which other answers need. One at a
    time, because tokenizers are not made for several threads."""
    return await asyncio.get_running_loop().run_in_executor(RENDERING, of, *given)


def chat(served: Served, tenant: str, request: ChatRequest) -> Reply:
    """Raises ApiError."""
    return Reply.to(of_chat(request, served, tenant), "chatcmpl-", request.return_token_ids)


@dataclass(frozen=True)
class Completions:
    """One reply for each prompt; ``echoed``: the prompts, where they are to be shown."""

    request: CompletionRequest
    replies: tuple[Reply, ...]
    echoed: tuple[str, ...]

    async def complete(self) -> JsonObject:
        """Raises ApiError."""
        done = [await answers.complete(reply.asked) for reply in self.replies]
        each = zip(self.replies, done, self.echoed, strict=True)
        choices = [choice for reply, of_prompt, prompt in each for choice in reply.text(of_prompt, prompt)]
        numbered = [{**choice, "index": n} for n, choice in enumerate(choices)]
        return {**self.replies[0].head("text_completion"), "choices": numbered, "usage": self._usage(done)}

    def _usage(self, done: Sequence[Sequence[Answer]]) -> JsonObject:
        """Of all prompts together."""
        totals = [answers.usage(reply.asked, of_prompt) for reply, of_prompt in zip(self.replies, done, strict=True)]
        cached = sum(total["prompt_tokens_details"]["cached_tokens"] for total in totals)
        sums = {key: sum(t[key] for t in totals) for key in ("prompt_tokens", "completion_tokens", "total_tokens")}
        return {**sums, "prompt_tokens_details": {"cached_tokens": cached}}

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Prompt after prompt."""
        begun = False
        try:
            for n, (reply, prompt) in enumerate(zip(self.replies, self.echoed, strict=True)):
                first = n * (self.request.n or 1)
                async for chunk in reply.text_stream(first, prompt, self.request.usage_in_stream):
                    begun = True
                    yield chunk
            if self.request.usage_in_stream:
                usage = self._usage([reply.done for reply in self.replies])
                yield event({**self.replies[0].head("text_completion"), "choices": [], "usage": usage})
            yield DONE
        except ApiError as error:
            if not begun:
                raise
            yield event(error.body())


def completions(served: Served, tenant: str, request: CompletionRequest) -> Completions:
    """Raises ApiError."""
    request.check()
    _check(request)
    asked = (_asked(request, served, tenant, prompt) for prompt in request.prompts)
    replies = tuple(Reply.to(a, "cmpl-", request.return_token_ids) for a in asked)
    echoed = tuple(_shown(served, prompt) if request.echo else "" for prompt in request.prompts)
    return Completions(request, replies, echoed)


def _check(request: CompletionRequest) -> None:
    if not request.prompts or not all(request.prompts):
        raise bad("invalid_value", "prompt: an empty prompt has nothing to continue.", "prompt")
    if len(request.prompts) > MOST_PROMPTS:
        raise bad("invalid_value", f"prompt: at most {MOST_PROMPTS} prompts in one request.", "prompt")
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise bad("unsupported_parameter", "best_of other than n is not supported.", "best_of")
    if request.echo and request.logprobs is not None:
        raise bad("unsupported_parameter", "echo cannot be combined with logprobs.", "echo")


def _asked(request: CompletionRequest, served: Served, tenant: str, prompt: str | list[int]) -> Asked:
    vocabulary = served.base.facts.vocabulary
    if isinstance(prompt, str):
        try:
            ids: list[int] = served.template.tokenizer(prompt)["input_ids"]
        except (TypeError, UnicodeError):
            raise bad("invalid_value", "prompt: the text has a lone surrogate.", "prompt") from None
    elif max(prompt) < vocabulary:
        ids = prompt
    else:
        raise bad("invalid_value", f"prompt: {max(prompt)} is not the id of one of {vocabulary} tokens.", "prompt")
    generation = generation_of(request, served, tenant, ids, request.max_tokens or NEW_TOKENS)
    generation = replace(generation, logprobs=request.logprobs)
    return Asked(served, several(generation, request.n or 1), tuple(request.stops), is_chat=False)


def _shown(served: Served, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else str(served.template.tokenizer.decode(prompt))
