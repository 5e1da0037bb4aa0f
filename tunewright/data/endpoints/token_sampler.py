"""Samples from a server that takes and returns token ids, and loads adapters while it runs: vLLM's endpoints."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, FiniteFloat, ValidationError

from tunewright.core.errors import RunError, TrainError
from tunewright.data.endpoints.openai_endpoint import Endpoint, Reading, Refused, each, post

if TYPE_CHECKING:
    import httpx

WHERE = "reward.sampler.url"


@dataclass(frozen=True)
class TokenPrompt:
    """The tokens of a prompt, and the seed of its sample."""

    ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class TokenAnswer:
    """The tokens of a sample, with the stop token that ended it, if one did; their log-probabilities."""

    ids: tuple[int, ...]
    logp: tuple[float, ...]


class _Logprobs(BaseModel):
    token_logprobs: list[FiniteFloat]


class _Choice(BaseModel):
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Reply(BaseModel):
    choices: list[_Choice]


class _Listed(BaseModel):
    id: str
    parent: str | None = None


class _Models(BaseModel):
    data: list[_Listed]


def sampled(endpoint: Endpoint, prompts: Sequence[TokenPrompt], limit: int, stop: Sequence[int]) -> list[TokenAnswer]:
    """A sample for each prompt, at temperature 1, of at most ``limit`` tokens. Raises ROLLOUT_FAILED."""

    def ask(client: httpx.Client, place: int, stopped: threading.Event) -> TokenAnswer:
        reading = Reading(endpoint.fix, stopped, lambda response, _: _answer(response, limit, stop))
        body = _body(endpoint, prompts[place], limit, stop)
        return post(client, f"{endpoint.url}/completions", body, reading)

    answers: dict[int, TokenAnswer] = {}
    try:
        for place, answer in each(endpoint, len(prompts), ask):
            if isinstance(answer, Refused):
                raise answer
            answers[place] = answer
    except RunError as error:
        raise failed(error.problems[0].message) from None
    return [answers[place] for place in range(len(prompts))]


def _body(endpoint: Endpoint, prompt: TokenPrompt, limit: int, stop: Sequence[int]) -> dict[str, object]:
    """With every choice, so that no default of the server decides."""
    return {
        "model": endpoint.model,
        "prompt": list(prompt.ids),
        "max_tokens": limit,
        "stop_token_ids": sorted(stop),
        "temperature": 1.0,
        "seed": prompt.seed,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logprobs": 1,
        "return_token_ids": True,
    }


def _answer(response: httpx.Response, limit: int, stop: Sequence[int]) -> TokenAnswer | None:
    """Raises ROLLOUT_FAILED for a reply that cannot be trained on."""
    try:
        (choice,) = _Reply.model_validate_json(response.content).choices
    except (ValidationError, ValueError):
        return None
    if choice.token_ids is None:
        fix = "use vLLM 0.11 or newer, or leave reward.sampler out: text tokenized again is not what was sampled."
        raise failed("the endpoint returns no token ids.", fix)
    ids, logp = tuple(choice.token_ids), tuple(choice.logprobs.token_logprobs if choice.logprobs else ())
    if not ids or len(logp) != len(ids):
        raise failed(f"the endpoint returned {len(ids)} tokens and {len(logp)} log-probabilities.")
    if ids[-1] not in stop and len(ids) < limit:
        raise failed(f"a sample of {len(ids)} tokens ended with none of the model's stop tokens.")
    return TokenAnswer(ids, logp)


def base_of(endpoint: Endpoint) -> str:
    """The name of the server's base. Raises ROLLOUT_FAILED."""
    response = _call(endpoint, "GET", "models", None)
    try:
        bases = [m.id for m in _Models.model_validate_json(response.content).data if m.parent is None]
    except ValidationError:
        bases = []
    if response.status_code != 200 or len(bases) != 1:
        what = f"status {response.status_code}, models without a parent: {', '.join(bases) or 'none'}."
        raise failed(f"{endpoint.url} is not a vLLM server with one base: {what}")
    return bases[0]


def load(endpoint: Endpoint, name: str, folder: Path) -> None:
    """Register an adapter. A name is never used for two. Raises ROLLOUT_FAILED."""
    response = _call(endpoint, "POST", "load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
    if response.status_code != 200 and "already been loaded" not in response.text:
        fix = (
            "start it with --enable-lora, VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and a --max-lora-rank of at least the "
            "adapter's, where it can read the run folder."
        )
        raise failed(f"it does not load the adapter: status {response.status_code}: {response.text[:200]}.", fix)


def unload(endpoint: Endpoint, name: str) -> None:
    """Whether or not it is there. Raises ROLLOUT_FAILED."""
    _call(endpoint, "POST", "unload_lora_adapter", {"lora_name": name})


def named(endpoint: Endpoint, model: str) -> Endpoint:
    return replace(endpoint, model=model)


def _call(endpoint: Endpoint, method: str, path: str, body: dict[str, str] | None) -> httpx.Response:
    import httpx

    headers = {"authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    try:
        return httpx.request(method, f"{endpoint.url}/{path}", json=body, headers=headers, timeout=600.0)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise failed(f"{endpoint.url} cannot be asked: {type(error).__name__}: {error}.") from None


def failed(message: str, fix: str = "once it answers again, the same command continues.") -> TrainError:
    return TrainError("ROLLOUT_FAILED", message, where=WHERE, fix=fix)
