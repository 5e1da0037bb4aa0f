"""A running server with OpenAI's completions API: vLLM, llama-server, SGLang and others. Prompts are sent as token ids
and as messages. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict

import httpx
from pydantic import BaseModel, FiniteFloat, ValidationError

from tunewright.core.errors import RunError
from tunewright.data.endpoints.openai_endpoint import Endpoint
from tunewright.data.messages import Json
from tunewright.export.consumers.answers import Answered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TIMEOUT_SECONDS = 600.0  # some programs write a token per second on a CPU that others use
CONNECT_SECONDS = 30.0
NAMES = {"llamacpp": "llama-server", "vllm": "vLLM", "sglang": "SGLang"}
# Beside OpenAI's parameters: vLLM shows token ids, llama-server does not answer from its cache.
# Without penalties that the server may have been started with.
EXTRAS: dict[str, Json] = {
    "return_token_ids": True,
    "cache_prompt": False,
    "repetition_penalty": 1.0,
    "repeat_penalty": 1.0,
}
LOCAL = ("localhost", "127.0.0.1", "::1", "0.0.0.0")  # where no proxy can reach a server of this machine


class Listed(BaseModel):
    """A model of the server. ``root``: its folder, ``parent``: of an adapter, its base, if vLLM serves it."""

    id: str
    owned_by: str = ""
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class _Token(BaseModel):
    id: int | None = None
    token: str = ""
    logprob: FiniteFloat
    top_logprobs: list[_Token] = []


class _Logprobs(BaseModel):
    """In OpenAI's form (`token_logprobs`), or in that of chat completions (`content`), which llama-server always
    uses."""

    tokens: list[str] = []
    token_logprobs: list[FiniteFloat] = []
    top_logprobs: list[dict[str, float]] = []
    content: list[_Token] | None = None


class _Choice(BaseModel):
    text: str = ""
    message: dict[str, object] | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None


class _Reply(BaseModel):
    """All that is read of any reply. ``prompt``: a rendered conversation; ``version``, ``build_info``: of the program;
    ``model_path``: the file that llama-server serves."""

    data: list[Listed] = []
    choices: list[_Choice] = []
    usage: dict[str, object] | None = None
    tokens: list[int] | None = None
    prompt: str = ""
    version: str | int = ""
    build_info: str = ""
    model_path: str = ""


@dataclass(frozen=True)
class Server:
    """``name``, ``version``: of the program, as far as it says so. ``models``: what it serves; ``files``: the files and
    folders that it names. ``tokenizer``: the run's, for servers that show no token ids. ``context``: tokens of a prompt
    and its answer, if the server says so."""

    endpoint: Endpoint
    client: httpx.Client
    tokenizer: Callable[[], PreTrainedTokenizerBase]
    models: tuple[Listed, ...] = ()
    name: str = "the server"
    version: str = ""
    files: tuple[str, ...] = ()
    context: int | None = None

    def complete(self, prompt: Sequence[int], limit: int) -> Answered:
        """The greedy answer of at most ``limit`` tokens. Raises REMOTE_FAILED."""
        body: dict[str, Json] = {"prompt": list(prompt), "max_tokens": limit, "temperature": 0, "logprobs": 1}
        response = self._post("/completions", body | EXTRAS)
        if response.status_code in (400, 422):  # perhaps because of the extras
            response = self._post("/completions", body)
        if response.status_code != 200:
            raise self._refused(response, prompt)
        return self._answer(read(response))

    def chat(self, conversation: Mapping[str, object], limit: int) -> Answered | None:
        """The same for messages; None if the server does not offer it."""
        more: dict[str, Json] = {"max_tokens": limit, "temperature": 0, "logprobs": True, "top_logprobs": 1}
        response = self._post("/chat/completions", {**_as_api(conversation), **more, **EXTRAS})
        if response.status_code in (404, 405, 501):
            return None
        if response.status_code != 200:
            raise self._refused(response)
        return self._answer(read(response))

    def encoded(self, conversation: Mapping[str, object]) -> list[int] | None:
        """Token ids that the server makes of a conversation; None if it does not show them."""
        body = {**_as_api(conversation), "add_generation_prompt": True}
        rendered = self._post("/apply-template", body, root=True)
        if rendered.status_code == 200:  # llama-server; vLLM renders and tokenizes at once
            body = {"content": read(rendered).prompt, "add_special": True, "parse_special": True}
        response = self._post("/tokenize", body, root=True)
        return read(response).tokens if response.status_code == 200 else None

    def named(self, model: str) -> Server:
        """The same server, asked for another of its models."""
        return replace(self, endpoint=replace(self.endpoint, model=model))

    def _post(self, path: str, body: Mapping[str, Json], root: bool = False) -> httpx.Response:
        url = self.endpoint.url.removesuffix("/v1") if root else self.endpoint.url
        return send(self.client, "POST", url + path, {"model": self.endpoint.model, **body})

    def _answer(self, reply: _Reply) -> Answered:
        if not reply.choices:
            raise failed(self.endpoint.url, "the reply has no choices")
        choice, usage = reply.choices[0], reply.usage or {}
        logprobs = choice.logprobs or _Logprobs()
        given = logprobs.content or []
        values = logprobs.token_logprobs or [t.logprob for t in given]
        best = [max(top.values(), default=v) for top, v in zip(logprobs.top_logprobs, values, strict=False)]
        best = best or [max(top.logprob for top in t.top_logprobs or [t]) for t in given]
        if not values and (choice.text or choice.message):
            raise failed(self.endpoint.url, "it gives no log probabilities")
        ids, complete = choice.token_ids or [t.id for t in given if t.id is not None], True
        if choice.message is not None:  # a chat answer is compared by its log probabilities alone
            ids = []
        elif not ids:
            ids, complete = self._ids(choice.text, logprobs.tokens or [t.token for t in given], len(values))
        counted, count = usage.get("prompt_tokens"), len(ids) if choice.message is None else len(values)
        return Answered(
            ids=tuple(ids[: len(values)]),
            logprobs=tuple(values[:count]),
            ended=complete and choice.finish_reason == "stop",
            prompt_tokens=counted if isinstance(counted, int) else None,
            regret=max((b - v for b, v in zip(best, values, strict=False)), default=0.0),
        )

    def _ids(self, text: str, shown: Sequence[str], count: int) -> tuple[list[int], bool]:
        """Token ids of an answer of ``count`` tokens, of which the server gives only the text: those of the run's
        tokenizer, up to the first one that is not the token ``shown``; and whether these are all, except for a stop
        token. A greedy answer may be spelled in other tokens than its text. Raises REMOTE_FAILED if none is certain."""
        tokenizer = self.tokenizer()
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        differ = (t for t, (i, s) in enumerate(zip(ids, shown, strict=False)) if not _is_shown_as(tokenizer, i, s))
        same = next(differ, min(len(ids), len(shown))) if shown else len(ids)
        complete = same == len(ids) and count - same in (0, 1)
        if not complete and not (shown and same):
            what = "its answer cannot be compared, because it shows no token ids, and its text has other tokens"
            raise failed(self.endpoint.url, what, "check a server that shows them, such as llama-server or vLLM.")
        return ids[:same], complete

    def _refused(self, response: httpx.Response, prompt: Sequence[int] = ()) -> RunError:
        """Why a request was refused."""
        status, url, names = response.status_code, self.endpoint.url, [listed.id for listed in self.models]
        if names and self.endpoint.model not in names and status in (400, 404):
            return failed(url, f"it has no model {self.endpoint.model}", f"choose another --model: {', '.join(names)}.")
        if status in (401, 403):
            fix = "name the environment variable with its API key: --api-key-env VAR."
            return failed(url, f"it refuses access ({status})", fix)
        if prompt:  # are ids refused, or so many of them?
            tried: tuple[Json, Json] = (list(prompt[:1]), "a")
            one, text = (self._post("/completions", {"prompt": p, "max_tokens": 1}) for p in tried)
            if text.status_code == 200 != one.status_code:
                fix = "ask a server that does, such as llama-server, vLLM or SGLang."
                return failed(url, "it does not accept token ids as a prompt", fix)
        return failed(url, f"status {status}: {_start(response)}")


@contextmanager
def connect(endpoint: Endpoint, tokenizer: Callable[[], PreTrainedTokenizerBase]) -> Iterator[Server]:
    """The server at a URL, with or without its /v1. If no model is named, its only one. Raises REMOTE_FAILED."""
    with httpx.Client(**options(endpoint)) as client:
        # /v1 first: llama-server also lists its models at its root, where /completions is not OpenAI's.
        given, endpoint = endpoint, replace(endpoint, url=f"{endpoint.url.removesuffix('/v1')}/v1")
        response = send(client, "GET", f"{endpoint.url}/models")
        if response.status_code == 404:
            other = send(client, "GET", f"{given.url}/models")
            endpoint, response = (given, other) if other.status_code != 404 else (endpoint, response)
        server = Server(endpoint, client, tokenizer)
        if response.status_code in (401, 403):
            raise server._refused(response)
        models = read(response).data if response.status_code == 200 else []
        names = [listed.id for listed in models]
        if not endpoint.model and len(names) != 1:
            what = f"it has several models: {', '.join(names)}" if names else "it does not list its models"
            raise failed(endpoint.url, what, "name the one with this run's export: --model NAME.")
        if endpoint.model and names and endpoint.model not in names:  # llama-server answers to every name
            fix = f"choose another --model: {', '.join(names)}."
            raise failed(endpoint.url, f"it lists no model {endpoint.model}", fix)
        context = min((m.max_model_len for m in models if m.max_model_len), default=None)  # vLLM: of its base alone
        named = server.named(endpoint.model or names[0])
        yield _recognised(replace(named, models=tuple(models), context=context))


class Options(TypedDict):
    """Of a client of httpx."""

    headers: dict[str, str]
    timeout: httpx.Timeout
    trust_env: bool


def options(endpoint: Endpoint) -> Options:
    """Of a client for it. Requests may wait for others as long as these take."""
    return {
        "headers": {"authorization": f"Bearer {endpoint.key}"} if endpoint.key else {},
        "timeout": httpx.Timeout(TIMEOUT_SECONDS, connect=CONNECT_SECONDS, pool=None),
        "trust_env": not _is_local(endpoint.url),
    }


def _is_local(url: str) -> bool:
    with suppress(httpx.InvalidURL):
        return httpx.URL(url).host in LOCAL
    return False


def _is_shown_as(tokenizer: PreTrainedTokenizerBase, token: int, shown: str) -> bool:
    """Whether a server may show a token like this; SentencePiece leaves out a first space. A part of a character has no
    text of its own."""
    text = str(tokenizer.decode([token]))
    return shown == tokenizer.convert_ids_to_tokens(token) or ("\ufffd" not in text and shown in (text, f" {text}"))


def _recognised(server: Server) -> Server:
    """With the name and the version of the program, and the files that it serves, as far as it says so."""
    root = server.endpoint.url.removesuffix("/v1")
    replies = [send(server.client, "GET", f"{root}/{path}") for path in ("version", "props", "get_server_info")]
    facts = [read(r) for r in replies if r.status_code == 200 and r.text.startswith("{")]
    owner = next((listed.owned_by for listed in server.models), "")
    folders = [listed.root for listed in server.models if listed.root and listed.id == server.endpoint.model]
    return replace(
        server,
        name=NAMES.get(owner, owner or server.name),
        version=next((str(v) for f in facts if (v := f.version or f.build_info)), ""),
        files=(*folders, *(f.model_path for f in facts if f.model_path)),
    )


def send(client: httpx.Client, method: str, url: str, body: Mapping[str, Json] | None = None) -> httpx.Response:
    """Raises REMOTE_FAILED if there is no response."""
    try:
        return client.request(method, url, json=body)
    except httpx.TimeoutException:
        raise failed(url, f"no answer within {TIMEOUT_SECONDS:g} s") from None
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        fix = "write the address with its protocol, such as http://localhost:8080."
        raise failed(url, str(error).rstrip("."), fix) from None
    except httpx.TransportError as error:
        raise failed(url, str(error).rstrip("."), "start it, or check the address and the port.") from None


def read(response: httpx.Response) -> _Reply:
    """The body of a response. Raises REMOTE_FAILED."""
    try:
        return _Reply.model_validate_json(response.content)
    except ValidationError:
        raise failed(str(response.url), f"the reply has another form than OpenAI's API: {_start(response)}") from None


def failed(url: str, what: str, fix: str = "see the log of the server.") -> RunError:
    return RunError("REMOTE_FAILED", f"the server cannot be asked: {what}.", where=url, fix=fix)


def _start(response: httpx.Response) -> str:
    return " ".join(response.text[:200].split())


def _as_api(conversation: Mapping[str, object]) -> dict[str, Json]:
    """The arguments of a chat template as the body of a request: the arguments of calls are text."""
    body = json.loads(json.dumps(conversation))
    body["messages"] = body.pop("conversation")
    for call in (call["function"] for message in body["messages"] for call in message.get("tool_calls", ())):
        if not isinstance(call["arguments"], str):
            call["arguments"] = json.dumps(call["arguments"], ensure_ascii=False)
    return dict(body)
