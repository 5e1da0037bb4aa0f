"""vLLM in the place of our engine: it is asked with token ids and answers with token ids, so templates, grammars,
names, tenants and jobs stay here.

It must see the run folders under the same paths, and take adapters at run time: ``vllm serve BASE --enable-lora
--max-lora-rank 64`` with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from tunewright.core import programs
from tunewright.core.config import AdapterConfig
from tunewright.core.errors import TunewrightError
from tunewright.model.decoding.stack import supports
from tunewright.server.engine import vllm
from tunewright.server.engine.generation import AdapterFile, Begun, Emit, Ended, Generation, TooBusy, TooLong
from tunewright.server.engine.prefixes import Owner
from tunewright.server.engine.requests import Limits, Stats, Ticket
from tunewright.server.engine.vllm import Refused, Remote, name_of

REFUSED_SECONDS = 60.0  # an adapter that could not be published is not tried again before
PUBLISH = "tunewright.server.jobs.publish"
log = logging.getLogger(__name__)


@dataclass
class _Published:
    """``lock``: it is published once, however many ask. ``refused``: until when, and why."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    done: bool = False
    refused: tuple[float, str] = (0.0, "")


class RemoteEngine:
    """In the place of `Engine`. Requests are tasks of the server's event loop."""

    scales = False

    def __init__(self, remote: Remote, context: int, limits: Limits) -> None:
        self._remote, self._limits, self.most_tokens = remote, limits, context
        self._http: httpx.AsyncClient | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._published: dict[str, _Published] = defaultdict(_Published)
        self._secret = secrets.token_hex(16)
        self._tokens = self._prompt_tokens = self._cached = 0
        self._seconds = 0.0

    def refuses(self, config: AdapterConfig, step: int | None) -> str | None:
        """Why an adapter cannot be served."""
        if step is not None:
            return "the engine at --engine serves finished models, not checkpoints."
        return None if supports(config) else f"vLLM has no {config.kind} adapters; export it merged."

    def submit(self, asked: Generation, emit: Emit) -> Ticket:
        """``emit`` is called by the event loop, which must be the caller's. Raises TooLong, TooBusy."""
        if asked.tokens > self.most_tokens:
            raise TooLong(self.most_tokens)
        if len(self._tasks) >= self._limits.rows + self._limits.waiting:
            raise TooBusy
        task = asyncio.get_running_loop().create_task(self._answered(asked, emit))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return Ticket(task.cancel)

    def forget(self, which: Callable[[Owner], bool]) -> None:
        """Prompts are kept by vLLM, for each tenant apart."""

    def stats(self) -> Stats:
        waiting = max(0, len(self._tasks) - self._limits.rows)
        return Stats(
            active=len(self._tasks) - waiting,
            waiting=waiting,
            tokens=self._tokens,
            prompt_tokens=self._prompt_tokens,
            cached=self._cached,
            seconds=self._seconds,
            prefix_bytes=0,
            adapters=tuple(key for key, published in self._published.items() if published.done),
        )

    async def disconnect(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    def close(self) -> None:
        """All has ended with the event loop."""

    async def _answered(self, asked: Generation, emit: Emit) -> None:
        started = time.monotonic()
        try:
            await self._answer(asked, emit)
        except (Refused, TunewrightError) as error:
            emit(Ended("failed", f"the engine: {error}"))
        except httpx.HTTPError as error:
            emit(Ended("failed", f"the engine at {self._remote.url} does not answer: {type(error).__name__}"))
        except Exception as error:
            log.exception("a request to the engine failed")
            emit(Ended("failed", f"internal error: {type(error).__name__}"))
        finally:
            self._seconds += time.monotonic() - started

    async def _answer(self, asked: Generation, emit: Emit) -> None:
        for again in (True, False):
            name = self._remote.model if asked.adapter is None else await self._ready(asked.adapter)
            url, body = f"{self._remote.api}/completions", vllm.request(asked, name, self._secret)
            async with self._client().stream("POST", url, json=body) as response:
                if response.status_code == 404 and asked.adapter is not None and again:
                    self._published[asked.adapter.sha256].done = False  # vLLM was started again without our adapters
                    continue
                if response.status_code != 200:
                    raise Refused(vllm.message(await response.aread()))
                await self._read(response, asked, emit)
            return

    async def _read(self, response: httpx.Response, asked: Generation, emit: Emit) -> None:
        ended: Ended | None = None
        async for line in response.aiter_lines():
            for event in vllm.events(line, asked):
                if isinstance(event, Ended):
                    ended = ended or event
                elif isinstance(event, Begun):
                    self._prompt_tokens += len(asked.prompt)
                    self._cached += event.cached
                    emit(event)
                elif ended is None:
                    self._tokens += 1
                    emit(event)
        if ended is None:
            raise Refused("it stopped in the middle of an answer")
        emit(ended)

    async def _ready(self, adapter: AdapterFile) -> str:
        """The name of an adapter that is published: registered there, and verified. Raises Refused, and what
        publishing raises."""
        name, published = name_of(adapter.sha256), self._published[adapter.sha256]
        async with published.lock:
            until, why = published.refused
            if time.monotonic() < until:
                raise Refused(why)
            if not published.done:
                try:
                    await self._publish(adapter)
                except TunewrightError as error:
                    published.refused = time.monotonic() + REFUSED_SECONDS, str(error)
                    raise
                published.done = True
        return name

    async def _publish(self, adapter: AdapterFile) -> None:
        listed = vllm.models(await self._client().get(f"{self._remote.api}/models"))
        if name_of(adapter.sha256) in [model.id for model in listed]:  # by its job, or by a server before this one
            return
        assert adapter.run is not None
        command = [sys.executable, "-m", PUBLISH, str(adapter.run), *self._remote.arguments()]
        piped = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, "--parent", str(os.getpid()), stderr=piped)
        try:
            _, errors = await process.communicate()
        except asyncio.CancelledError:
            process.terminate()
            await process.wait()
            raise
        if process.returncode:
            raise programs.error_of(process.returncode, errors.decode("utf-8", "replace"), str(adapter.run))

    def _client(self) -> httpx.AsyncClient:
        """Made in the event loop that uses it. As many requests as rows are under way; others wait for one of these."""
        if self._http is None:
            self._http = httpx.AsyncClient(
                headers=self._remote.headers,
                timeout=vllm.TIMEOUT,
                trust_env=self._remote.by_proxy,
                limits=httpx.Limits(max_connections=self._limits.rows),
            )
        return self._http
