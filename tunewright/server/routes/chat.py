"""/v1/chat/completions and /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from tunewright.server.chat import answers
from tunewright.server.chat.completions import DONE, Reply, event
from tunewright.server.chat.prompt import Asked, generation_of, of_chat, several
from tunewright.server.chat.request import ChatRequest, CompletionRequest
from tunewright.server.errors import ApiError, bad
from tunewright.server.models import Served
from tunewright.server.routes.common import Tenant, The, unless_gone

router = APIRouter(prefix="/v1", tags=["chat"])
MOST_PROMPTS = 64


@router.post("/chat/completions", response_model=None)
async def create_chat(the: The, tenant: Tenant, http: Request, request: ChatRequest) -> dict[str, Any] | Response:
    served = the.catalogue.get(tenant, request.model)
    reply = Reply.to(of_chat(request, served, tenant), "chatcmpl-", request.return_token_ids)
    if request.stream:
        return streamed(reply.chat_stream(request.usage_in_stream))

    async def work() -> dict[str, Any]:
        return reply.chat(await answers.complete(reply.asked))

    return await unless_gone(http, work())


@router.post("/completions", response_model=None)
async def create_completion(
    the: The, tenant: Tenant, http: Request, request: CompletionRequest
) -> dict[str, Any] | Response:
    served = the.catalogue.get(tenant, request.model)
    request.check()
    _check(request)
    replies = [
        Reply.to(_asked(request, served, tenant, prompt), "cmpl-", request.return_token_ids)
        for prompt in request.prompts
    ]
    echoed = [_shown(served, p) if request.echo else "" for p in request.prompts]
    if request.stream:
        return streamed(_stream(request, replies, echoed))

    async def work() -> dict[str, Any]:
        done = [await answers.complete(reply.asked) for reply in replies]
        choices = [
            c for reply, each, prompt in zip(replies, done, echoed, strict=True) for c in reply.text(each, prompt)
        ]
        totals = [answers.usage(reply.asked, each) for reply, each in zip(replies, done, strict=True)]
        total = {key: sum(t[key] for t in totals) for key in ("prompt_tokens", "completion_tokens", "total_tokens")}
        numbered = [{**choice, "index": n} for n, choice in enumerate(choices)]
        return {**replies[0].head("text_completion"), "choices": numbered, "usage": total}

    return await unless_gone(http, work())


def streamed(chunks: AsyncGenerator[bytes, None]) -> StreamingResponse:
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return StreamingResponse(chunks, media_type="text/event-stream", headers=headers)


async def _stream(request: CompletionRequest, replies: list[Reply], echoed: list[str]) -> AsyncGenerator[bytes, None]:
    """Prompt after prompt."""
    try:
        for n, (reply, prompt) in enumerate(zip(replies, echoed, strict=True)):
            async for chunk in reply.text_stream(n * (request.n or 1), prompt, request.usage_in_stream):
                yield chunk
        yield DONE
    except ApiError as error:
        yield event(error.body())


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
        ids: list[int] = served.template.tokenizer(prompt)["input_ids"]
    elif max(prompt) < vocabulary:
        ids = prompt
    else:
        raise bad("invalid_value", f"prompt: {max(prompt)} is not the id of one of {vocabulary} tokens.", "prompt")
    generation = generation_of(request, served, tenant, ids, request.max_tokens or 16)
    generation = replace(generation, logprobs=request.logprobs)
    return Asked(served, several(generation, request.n or 1), tuple(request.stops))


def _shown(served: Served, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else str(served.template.tokenizer.decode(prompt))
