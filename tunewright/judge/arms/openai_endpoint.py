"""Another model, behind any endpoint with OpenAI's chat completions API. No torch."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import urlsplit

from tunewright.core.config import RemoteConfig
from tunewright.core.errors import RunError
from tunewright.data.messages import Example, Json, Message, Prompt, ToolCall
from tunewright.data.metrics import read_label
from tunewright.data.scores import Answer, Written
from tunewright.data.text import without_thoughts
from tunewright.judge.arms.arm import Model, Progress, silent

ATTEMPTS = 4
TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True)
class Endpoint:
    """``fix``: what to do if a request fails."""

    url: str
    model: str
    key: str = field(default="", repr=False)
    concurrency: int = 8
    fix: str = "check prove.remote and its API key, or leave prove.remote out."

    @classmethod
    def of(cls, config: RemoteConfig) -> Endpoint:
        key = api_key(config.url, config.api_key_env)
        return cls(url=config.url.rstrip("/"), model=config.model, key=key, concurrency=config.concurrency)


def api_key(url: str, variable: str) -> str:
    """The API key in an environment variable. Unless one is named, a key of OpenAI goes to OpenAI only."""
    if variable:
        return os.environ.get(variable, "")
    return os.environ.get("OPENAI_API_KEY", "") if urlsplit(url).hostname == "api.openai.com" else ""


@dataclass(frozen=True)
class Remote:
    """Answers of at most ``max_new_tokens`` tokens; for a label task, the label that the answer names, if any."""

    endpoint: Endpoint
    max_new_tokens: int
    labels: tuple[str, ...] = ()
    needs_model: ClassVar[bool] = False
    deterministic: ClassVar[bool] = False
    decoding: ClassVar[str] = "greedy"

    def prompt(self, example: Example) -> Prompt:
        return example.prompt

    def answer(self, examples: Sequence[Example], model: Model | None, progress: Progress) -> list[Answer]:
        prompts = [self.prompt(e) for e in examples]
        answers = []
        for prompt, reply in zip(prompts, ask(self.endpoint, prompts, self.max_new_tokens, progress), strict=True):
            answer = without_thoughts(reply.text) if self.labels else ""
            text = read_label(answer, self.labels) or reply.text
            written = Written(reply.answer_tokens, reply.cut, round(reply.seconds, 3))
            answers.append(Answer(text, written, prompt.messages, prompt_tokens=reply.prompt_tokens))
        return answers


@dataclass(frozen=True)
class Reply:
    """``cut``: the answer reached the token limit."""

    text: str
    prompt_tokens: int
    answer_tokens: int
    cut: bool
    seconds: float


def ask(endpoint: Endpoint, prompts: Sequence[Prompt], limit: int, progress: Progress = silent) -> list[Reply]:
    """Replies in the order of the prompts, at temperature 0. Raises REMOTE_FAILED if the endpoint refuses a request or
    cannot be reached."""
    import httpx

    headers = {"authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    with (
        httpx.Client(headers=headers, timeout=TIMEOUT_SECONDS) as client,
        ThreadPoolExecutor(endpoint.concurrency) as pool,
    ):

        def send(prompt: Prompt) -> Reply:
            body = {
                "model": endpoint.model,
                "messages": [m.to_json(text_arguments=True) for m in prompt.messages],
                **({"tools": list(prompt.tools)} if prompt.tools else {}),
                "temperature": 0,
                "max_tokens": limit,
            }
            reply = _post(client, f"{endpoint.url}/chat/completions", body, endpoint.fix)
            progress(1)
            return reply

        return list(pool.map(send, prompts))


def _text(reply: dict[str, Json]) -> str:
    """The content of a reply, followed by its tool calls, as in `Message.text`. A call that could not be made has no
    arguments that can be read, and is a wrong one."""
    content, given = reply.get("content"), reply.get("tool_calls")
    calls = [_call(c.get("function")) for c in (given if isinstance(given, list) else []) if isinstance(c, dict)]
    return Message("assistant", content if isinstance(content, str) else "", tuple(calls)).text


def _call(function: Json) -> ToolCall:
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError
    arguments: Json = function.get("arguments") or "{}"
    with contextlib.suppress(ValueError):
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    return ToolCall(str(function["name"]), arguments if isinstance(arguments, dict) else {"": arguments})


def _accepted(body: dict[str, object], refusal: str) -> dict[str, object] | None:
    """The request without the parameters that a refusal names and that OpenAI's reasoning models do not take; None if
    it names none of them."""
    other = dict(body)
    if "max_completion_tokens" in refusal and "max_tokens" in other:
        other["max_completion_tokens"] = other.pop("max_tokens")
    if "temperature" in refusal:
        other.pop("temperature", None)
    return other if other != body else None


def _post(client: Any, url: str, body: dict[str, object], fix: str) -> Reply:
    import httpx

    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(2.0**attempt / 2)
        start = time.monotonic()
        try:
            response = client.post(url, json=body)
        except httpx.TransportError as error:
            reason = f"{type(error).__name__}: {error}"
            continue
        if response.status_code == 429 or response.status_code >= 500:
            reason = f"status {response.status_code}"
            continue
        if response.status_code == 400 and (other := _accepted(body, response.text)) is not None:
            body, reason = other, f"status 400: {response.text[:200]}"
            continue
        if response.status_code != 200:
            reason = f"status {response.status_code}: {response.text[:200]}"
            break
        try:
            value = response.json()
            choice, usage = value["choices"][0], value.get("usage") or {}
            return Reply(
                text=_text(choice["message"]),
                prompt_tokens=int(usage.get("prompt_tokens", 0)),
                answer_tokens=int(usage.get("completion_tokens", 0)),
                cut=choice.get("finish_reason") == "length",
                seconds=time.monotonic() - start,
            )
        except (ValueError, KeyError, IndexError, TypeError):
            reason = f"the reply is not a chat completion: {response.text[:200]}"
            break
    raise RunError(
        "REMOTE_FAILED",
        f"request to {url} failed: {reason}.",
        where=url,
        fix=fix,
    )
