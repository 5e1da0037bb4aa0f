"""Another model as an arm: any endpoint that speaks OpenAI's chat completions. No torch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tunewright.core.config import RemoteConfig
from tunewright.core.errors import RunError
from tunewright.data.examples import Message

TRIES = 4
SECONDS = 120.0


@dataclass(frozen=True)
class Endpoint:
    url: str
    model: str
    key: str = field(default="", repr=False)
    together: int = 8

    @classmethod
    def of(cls, asked: RemoteConfig) -> Endpoint:
        return cls(asked.url.rstrip("/"), asked.model, os.environ.get(asked.api_key_env, ""), asked.concurrency)


@dataclass(frozen=True)
class Reply:
    """``cut``: the answer ended at the limit."""

    text: str
    prompt_tokens: int
    answer_tokens: int
    cut: bool
    seconds: float


def answers(
    endpoint: Endpoint, prompts: Sequence[Sequence[Message]], limit: int, watch: Callable[[int], None] = lambda _: None
) -> list[Reply]:
    """Replies in the order of the prompts, greedy (temperature 0). Raises REMOTE_FAILED when one is refused or unreachable."""
    import httpx

    headers = {"authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    with httpx.Client(headers=headers, timeout=SECONDS) as client, ThreadPoolExecutor(endpoint.together) as pool:

        def one(messages: Sequence[Message]) -> Reply:
            body = {
                "model": endpoint.model,
                "messages": [{"role": m.role, "content": m.content} for m in messages],
                "temperature": 0,
                "max_tokens": limit,
            }
            found = _post(client, f"{endpoint.url}/chat/completions", body)
            watch(1)
            return found

        return list(pool.map(one, prompts))


def _post(client: Any, url: str, body: dict[str, Any]) -> Reply:
    import httpx

    said = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(2.0**attempt / 2)
        begun = time.monotonic()
        try:
            reply = client.post(url, json=body)
        except httpx.TransportError as error:
            said = f"{type(error).__name__}: {error}"
            continue
        if reply.status_code == 429 or reply.status_code >= 500:
            said = f"status {reply.status_code}"
            continue
        if reply.status_code != 200:
            said = f"status {reply.status_code}: {reply.text[:200]}"
            break
        try:
            value = reply.json()
            choice, used = value["choices"][0], value.get("usage") or {}
            return Reply(
                choice["message"]["content"] or "",
                int(used.get("prompt_tokens", 0)),
                int(used.get("completion_tokens", 0)),
                choice.get("finish_reason") == "length",
                time.monotonic() - begun,
            )
        except (ValueError, KeyError, IndexError, TypeError):
            said = f"no chat completion in the reply: {reply.text[:200]}"
            break
    raise RunError(
        "REMOTE_FAILED", f"{url} did not answer ({said}).", where=url, fix="check prove.remote and its key, or leave it out."
    )
