"""Another model, behind any endpoint with OpenAI's chat completions API. No torch."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar
from urllib.parse import urlsplit

from tunewright.core.config import RemoteConfig
from tunewright.core.errors import ConfigError, RunError
from tunewright.data.messages import Json, Message, Prompt, ToolCall

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
ATTEMPTS = 4
TIMEOUT_SECONDS = 120.0
MOST_REFUSED = 20  # requests, before one is answered
LONGEST_WAIT = 60.0  # seconds, whatever an endpoint asks for
BUSY = "the endpoint limits requests: run the same command again later, or send fewer at once."


class Refused(RunError):
    """One question that an endpoint does not answer."""


@dataclass(frozen=True)
class Endpoint:
    """``temperature``: of the answers; ``fix``: what to do if a request fails. ``more``: further parameters of a
    request."""

    url: str
    model: str
    key: str = field(default="", repr=False)
    concurrency: int = 8
    fix: str = "check prove.remote and its API key, or leave prove.remote out."
    more: tuple[tuple[str, Json], ...] = ()
    temperature: float = 0.0

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @classmethod
    def of(cls, config: RemoteConfig) -> Endpoint:
        key = api_key(config.url, config.api_key_env)
        return cls(url=config.url.rstrip("/"), model=config.model, key=key, concurrency=config.concurrency)


def api_key(url: str, variable: str) -> str:
    """The API key in an environment variable. Unless one is named, a key of OpenAI goes to OpenAI only. Raises
    CONFIG_RANGE for an address that is none or contains a password, and for a key that a request cannot contain."""
    try:
        host, user = urlsplit(url).hostname, urlsplit(url).username
    except ValueError:
        host = user = None
    if not host or user is not None:
        what = "the endpoint's address contains a user name" if user is not None else f"{url!r} is not a valid address"
        fix = "give http(s)://HOST/v1; an API key belongs in an environment variable."
        raise ConfigError("CONFIG_RANGE", f"{what}.", where="the endpoint", fix=fix)
    name = variable or ("OPENAI_API_KEY" if host == "api.openai.com" else "")
    key = os.environ.get(name, "").strip() if name else ""
    if not key.isascii() or not key.isprintable():
        what = f"the API key in {name} contains a character that a request cannot contain."
        raise ConfigError("CONFIG_RANGE", what, where=name, fix="copy the key again.")
    return key


@dataclass(frozen=True)
class Reply:
    """``cut``: the answer reached the token limit. ``refused``: why there is no answer."""

    text: str
    prompt_tokens: int
    answer_tokens: int
    cut: bool
    seconds: float
    refused: str = ""


def ask(
    endpoint: Endpoint, prompts: Sequence[Prompt], limit: int, progress: Callable[[int], None] = lambda _: None
) -> list[Reply]:
    """Replies in the order of the prompts. Raises REMOTE_FAILED if the endpoint refuses all requests,
    `MOST_REFUSED` before it answers one, or cannot be reached."""
    replies: dict[int, Reply] = {}
    for place, reply in ask_each(endpoint, prompts, limit):
        if isinstance(reply, Refused):
            replies[place] = Reply("", 0, 0, cut=False, seconds=0.0, refused=reply.problems[0].message)
            if all(r.refused for r in replies.values()) and len(replies) in (MOST_REFUSED, len(prompts)):
                raise reply  # it is about the request, and not about the question
        else:
            replies[place] = reply
        progress(1)
    return [replies[place] for place in range(len(prompts))]


def ask_each(endpoint: Endpoint, prompts: Sequence[Prompt], limit: int) -> Iterator[tuple[int, Reply | Refused]]:
    """(place of the prompt, reply) as replies come, several requests at a time. Raises REMOTE_FAILED, after the replies
    that came, if the endpoint cannot be reached or rejects the key."""
    return each(endpoint, len(prompts), lambda client, n, stopped: _asked(client, endpoint, prompts[n], limit, stopped))


def each(
    endpoint: Endpoint, count: int, asked: Callable[[httpx.Client, int, threading.Event], T]
) -> Iterator[tuple[int, T | Refused]]:
    """What ``asked`` returns for each of ``count`` questions, otherwise as `ask_each`."""
    import httpx

    todo, done = queue.SimpleQueue[int](), queue.SimpleQueue[tuple[int, T | None, Exception | None]]()
    for place in range(count):
        todo.put(place)
    stopped = threading.Event()
    failed: Exception | None = None
    headers = {"authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}

    def work(client: httpx.Client) -> None:
        with contextlib.suppress(queue.Empty):
            while not stopped.is_set():
                place = todo.get_nowait()
                try:
                    done.put((place, asked(client, place, stopped), None))
                except Exception as error:  # whatever it is, no reply may be missing without an error
                    done.put((place, None, error))
                    if not isinstance(error, Refused):
                        stopped.set()

    with httpx.Client(headers=headers, timeout=TIMEOUT_SECONDS) as client:
        # Daemons: who interrupts the command need not wait for a server that does not answer.
        workers = [
            threading.Thread(target=work, args=(client,), daemon=True) for _ in range(min(endpoint.concurrency, count))
        ]
        for worker in workers:
            worker.start()
        try:
            waiting = count
            while waiting and (any(worker.is_alive() for worker in workers) or not done.empty()):
                try:
                    place, reply, error = done.get(timeout=0.2)
                except queue.Empty:
                    continue
                waiting -= 1
                if isinstance(error, Refused):
                    yield place, error
                elif error is None:
                    assert reply is not None
                    yield place, reply
                else:
                    failed = failed or error
        finally:
            stopped.set()
    if failed is not None:
        raise failed
    assert not waiting, "every question has a reply"


def _asked(client: httpx.Client, endpoint: Endpoint, prompt: Prompt, limit: int, stopped: threading.Event) -> Reply:
    body: dict[str, object] = {
        "model": endpoint.model,
        "messages": [m.to_json(text_arguments=True) for m in prompt.messages],
        **({"tools": list(prompt.tools)} if prompt.tools else {}),
        "temperature": endpoint.temperature,
        "max_tokens": limit,
        **dict(endpoint.more),
    }
    return post(client, f"{endpoint.url}/chat/completions", body, Reading(endpoint.fix, stopped, _reply))


def _text(reply: dict[str, Json]) -> str:
    """The content of a reply, followed by its tool calls, as in `Message.text`. A call that could not be made has no
    arguments that can be read, and is a wrong one."""
    content, given = reply.get("content"), reply.get("tool_calls")
    calls = [_call(c.get("function")) for c in (given if isinstance(given, list) else []) if isinstance(c, dict)]
    if isinstance(content, list):  # of parts
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    text = Message("assistant", content if isinstance(content, str) else "", tuple(calls)).text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half a character could not be stored


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


@dataclass(frozen=True)
class Reading(Generic[T]):
    """What becomes of a request. ``fix``: what to do if it fails; ``stopped``: whether to try again no more; ``read``:
    the reply, given the response and the seconds that it took, or None for one of another form."""

    fix: str
    stopped: threading.Event
    read: Callable[[httpx.Response, float], T | None]


def post(client: httpx.Client, url: str, body: dict[str, object], reading: Reading[T]) -> T:
    """Raises REMOTE_FAILED: `Refused` if it is about this question alone."""
    import httpx

    reason, wait, fix, stopped = "", 0.0, reading.fix, reading.stopped
    for attempt in range(ATTEMPTS):
        if attempt and stopped.wait(max(2.0**attempt / 2, wait)):
            break
        start, wait = time.monotonic(), 0.0
        try:
            content = json.dumps(body, allow_nan=False)
        except ValueError as error:
            raise Refused("REMOTE_FAILED", f"the question cannot be sent: {error}.", where=url, fix=fix) from None
        try:
            response = client.post(url, content=content, headers={"content-type": "application/json"})
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            reason = f"{type(error).__name__}: {error}"
            continue
        if response.status_code == 429 or response.status_code >= 500:
            reason, after = _status(response), response.headers.get("retry-after", "")
            wait = min(LONGEST_WAIT, float(after)) if after.isascii() and after.isdigit() else 0.0
            fix = BUSY if response.status_code == 429 else fix
            continue
        if response.status_code == 400 and (other := _accepted(body, response.text)) is not None:
            body, reason = other, _status(response)
            continue
        if response.status_code != 200:
            reason = _status(response)
            if response.status_code in (400, 413, 422):
                raise Refused("REMOTE_FAILED", f"request to {url} was refused: {reason}.", where=url, fix=fix)
            break
        if (reply := reading.read(response, time.monotonic() - start)) is not None:
            return reply
        reason = f"the reply is not a completion as expected: {response.text[:200]}"
        raise Refused("REMOTE_FAILED", f"request to {url} failed: {reason}.", where=url, fix=fix)
    raise RunError("REMOTE_FAILED", f"request to {url} failed: {reason}.", where=url, fix=fix)


def _status(response: httpx.Response) -> str:
    """With what the endpoint says about it."""
    return f"status {response.status_code}" + (f": {response.text[:200]}" if response.text else "")


def _reply(response: httpx.Response, seconds: float) -> Reply | None:
    """None if it is not a chat completion."""
    try:
        value = response.json()
        choice, usage = value["choices"][0], value.get("usage") or {}
        return Reply(
            text=_text(choice["message"]),
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            answer_tokens=int(usage.get("completion_tokens") or 0),
            cut=choice.get("finish_reason") == "length",
            seconds=seconds,
        )
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
