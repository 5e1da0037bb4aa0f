"""vLLM over HTTP: where it is, what a generation becomes as a request for completions of token ids, what its stream
says, and how adapters are registered."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from pydantic import BaseModel, JsonValue, ValidationError

from tunewright.core.errors import TunewrightError
from tunewright.data.endpoints.openai_endpoint import Endpoint
from tunewright.data.messages import Json
from tunewright.export.consumers import openai_server
from tunewright.export.consumers.openai_server import Listed
from tunewright.export.kind import Dtype
from tunewright.server.engine.choosing import TokenLogprob
from tunewright.server.engine.generation import Begun, Ended, Event, Generation, NewToken


class Refused(Exception):
    """With vLLM's message, or what is wrong with its answer. ``status``: for our client."""

    def __init__(self, message: str, status: int = 500) -> None:
        super().__init__(message)
        self.status = status

    @classmethod
    def by(cls, status: int, body: bytes) -> Refused:
        return cls(message(body), 400 if status in (400, 422) else 503 if status in (429, 502, 503, 504) else 500)


@dataclass(frozen=True)
class Remote:
    """``key_env``: the environment variable with its API key. ``dtype``: in which it computes, so it may round to it.
    ``model``: its name of the base, which `base_of` finds."""

    url: str
    key_env: str = ""
    dtype: Dtype = "bfloat16"
    model: str = ""

    @property
    def api(self) -> str:
        return f"{self.url.rstrip('/').removesuffix('/v1')}/v1"

    def endpoint(self, model: str) -> Endpoint:
        return Endpoint(self.api, model, os.environ.get(self.key_env, ""))

    def client(self) -> httpx.Client:
        return httpx.Client(**openai_server.options(self.endpoint(self.model)))

    def arguments(self) -> tuple[str, ...]:
        """For the command lines of processes that publish to it; `from_arguments` is the reverse."""
        return ("--engine", json.dumps([self.url, self.key_env, self.dtype]))


def from_arguments(given: str | None) -> Remote | None:
    return None if given is None else Remote(*json.loads(given))


def models(response: httpx.Response) -> list[Listed]:
    """Of the reply to /v1/models. Raises REMOTE_FAILED."""
    if response.status_code in (401, 403):
        raise openai_server.failed(str(response.url), "it wants an API key", "name its variable: --engine-key-env.")
    if response.status_code != 200:
        raise openai_server.failed(str(response.url), f"status {response.status_code}", "--engine is for vLLM.")
    return openai_server.read(response).data


def base_of(remote: Remote) -> tuple[str, int | None]:
    """The name of its base, and the tokens of its context. Raises REMOTE_FAILED."""
    with remote.client() as client:
        response = openai_server.send(client, "GET", f"{remote.api}/models")
    bases = [model for model in models(response) if model.parent is None]
    if len(bases) != 1:
        names = ", ".join(model.id for model in bases) or "none"
        what, fix = f"its models without a parent are: {names}", "one is needed; --engine is for vLLM."
        raise openai_server.failed(remote.api, what, fix)
    return bases[0].id, bases[0].max_model_len


def is_away(remote: Remote) -> bool:
    """Whether it cannot be reached, or is not ready."""
    with remote.client() as client:
        try:
            return openai_server.send(client, "GET", f"{remote.api}/models").status_code >= 500
        except TunewrightError:
            return True


def name_of(sha256: str, scale: float) -> str:
    """What an adapter is called there: a name stands for the same weights, at the same scale, forever."""
    return f"tunewright-{hashlib.sha256(f'{sha256} {scale:g}'.encode()).hexdigest()[:32]}"


def register(remote: Remote, name: str, folder: Path) -> None:
    """Raises REMOTE_FAILED."""
    with remote.client() as client:
        body: dict[str, Json] = {"lora_name": name, "lora_path": str(folder)}
        response = openai_server.send(client, "POST", f"{remote.api}/load_lora_adapter", body)
    if response.status_code == 404:
        fix = "start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."
        raise openai_server.failed(remote.api, "it does not load adapters at run time", fix)
    there = response.status_code == 400 and f"{name}' has already been loaded" in response.text
    if response.status_code != 200 and not there:
        what = f"it does not take the adapter {folder}: {message(response.content)}"
        fix = "it must see the folder, and --max-lora-rank must be large enough."
        raise openai_server.failed(remote.api, what, fix)


def unregister(remote: Remote, name: str) -> None:
    """Whether or not it is there. Raises REMOTE_FAILED."""
    with remote.client() as client:
        openai_server.send(client, "POST", f"{remote.api}/unload_lora_adapter", {"lora_name": name})


def request(asked: Generation, model: str, secret: str) -> dict[str, Json]:
    """With every choice, so that no default of vLLM's decides. ``secret``: of the server, so that no tenant can name
    the cache of another."""
    how, sampling = asked.choosing, asked.choosing.sampling
    body: dict[str, Json] = {
        "model": model,
        "prompt": list(asked.prompt),
        "max_tokens": asked.max_tokens,
        "stop_token_ids": [*sorted(asked.stop)],
        "temperature": sampling.temperature,
        "seed": sampling.seed,
        "repetition_penalty": sampling.repetition_penalty,
        "top_p": how.top_p,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": how.presence,
        "frequency_penalty": how.frequency,
        "cache_salt": hashlib.sha256(f"{secret} {asked.tenant}".encode()).hexdigest(),
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    if how.bias:
        body["logit_bias"] = {str(token): value for token, value in how.bias}
    if asked.logprobs is not None:
        body["logprobs"] = asked.logprobs
    if asked.grammar is not None:
        # With llguidance's key against endless space, which vLLM's backend `guidance` reads and others ignore.
        body["structured_outputs"] = {"json": json.loads(asked.grammar)["grammars"][0]["json_schema"]}
    return body


class _Logprobs(BaseModel):
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] = []


class _Choice(BaseModel):
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Details(BaseModel):
    cached_tokens: int | None = None


class _Usage(BaseModel):
    prompt_tokens_details: _Details | None = None


class _Chunk(BaseModel):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: dict[str, JsonValue] | None = None


def events(line: str, asked: Generation) -> Iterator[Event]:
    """What a line of its stream says: tokens, the end of the answer, and last, with `Begun`, how much of the prompt was
    known. Raises Refused."""
    data = line.removeprefix("data:").strip()
    if not line.startswith("data:") or data == "[DONE]":
        return
    try:
        chunk = _Chunk.model_validate_json(data)
    except ValidationError:
        raise Refused(f"its stream is not in vLLM's format: {data[:200]}") from None
    if chunk.error is not None:
        raise Refused(str(chunk.error.get("message"))[:500])
    for choice in chunk.choices:
        yield from _tokens(choice, asked)
    if chunk.usage is not None:
        details = chunk.usage.prompt_tokens_details
        yield Begun((details.cached_tokens if details is not None else 0) or 0)


def _tokens(choice: _Choice, asked: Generation) -> Iterator[Event]:
    if choice.token_ids is None:
        raise Refused("it returned no token ids: vLLM 0.11 or newer is needed")
    given = choice.logprobs or _Logprobs()
    for n, token in enumerate(choice.token_ids):
        if token in asked.stop:
            yield Ended("stop")
            return
        yield NewToken(token, None if asked.logprobs is None else _logprob(given, n, token, asked.logprobs))
    if choice.finish_reason == "stop":
        yield Ended("stop")
    elif choice.finish_reason == "length":
        yield Ended("length")
    elif choice.finish_reason is not None:
        raise Refused(f"it ended the answer early: {choice.finish_reason}")


def _logprob(given: _Logprobs, at: int, token: int, count: int) -> TokenLogprob:
    """Of the ``at``-th token of a chunk. Tokens are written as token_id:42."""
    if len(given.token_logprobs) <= at or (value := given.token_logprobs[at]) is None:
        raise Refused("it returned no log-probabilities")
    top = (given.top_logprobs[at] if at < len(given.top_logprobs) else None) or {}
    likeliest = sorted(((int(k.rpartition(":")[2]), v) for k, v in top.items()), key=lambda pair: -pair[1])
    return TokenLogprob(token, value, tuple(likeliest[:count]))


def message(body: bytes) -> str:
    """What a refusal says."""
    try:
        read = json.loads(body)
        error = read.get("error", read)
        text = error.get("message") or error.get("detail") if isinstance(error, dict) else error
        return str(text or read)[:500]
    except (ValueError, AttributeError):
        return body.decode("utf-8", "replace")[:200]
