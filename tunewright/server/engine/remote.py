"""vLLM in the place of our engine: it is asked with token ids and answers with token ids, so templates, grammars,
names, tenants and jobs stay here.

It must see the run folders under the same paths, and load adapters at run time: ``vllm serve BASE --enable-lora
--max-lora-rank 64`` with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from tunewright.core import programs
from tunewright.core.config import AdapterConfig
from tunewright.core.errors import TunewrightError
from tunewright.export.consumers import openai_server
from tunewright.model.decoding.stack import supports
from tunewright.server.engine import vllm
from tunewright.server.engine.generation import (
    Begun,
    Emit,
    Ended,
    EngineClosed,
    Generation,
    TooBusy,
    TooLong,
    failure,
)
from tunewright.server.engine.prefixes import Owner
from tunewright.server.engine.requests import Limits, Stats, Ticket
from tunewright.server.engine.vllm import Refused, Remote, name_of

REFUSED_SECONDS = 60.0  # an adapter that could not be published is not tried again before
PUBLISH = "tunewright.server.jobs.publish"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Publication:
    """Of one adapter: under way, done, or failed. It does not end when the client that needed it first leaves."""

    task: asyncio.Task[None]
    started: float

    @property
    def is_void(self) -> bool:
        """Whether it failed, and may be tried again."""
        if not self.task.done():
            return False
        if self.task.cancelled() or isinstance(self.task.exception(), httpx.HTTPError):
            return True
        return self.task.exception() is not None and time.monotonic() > self.started + REFUSED_SECONDS


class RemoteEngine:
    """In the place of `Engine`. Requests are tasks of the server's event loop."""

    supports_scale = False

    def __init__(self, remote: Remote, context: int, limits: Limits) -> None:
        self._remote, self._limits, self.most_tokens = remote, limits, context
        self._http: httpx.AsyncClient | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._publications: dict[str, _Publication] = {}
        self._one_at_a_time = asyncio.Semaphore(1)  # each loads the base
        self._secret = secrets.token_hex(16)
        self._closing = False
        self._tokens = self._prompt_tokens = self._cached = 0
        self._seconds = self._busy_since = 0.0

    def refuses(self, config: AdapterConfig, step: int | None) -> str | None:
        """Why an adapter cannot be served."""
        if step is not None:
            return "the engine at --engine serves finished models, not checkpoints."
        if config.kind == "none":
            return "a fully fine-tuned model is not an adapter: serve the merged model with vLLM."
        if not config.uniform:
            return "vLLM reads one rank and alpha for all layers: export the merged model."
        return None if supports(config) else f"vLLM cannot load {config.kind} adapters: export the merged model."

    def submit(self, asked: Generation, emit: Emit) -> Ticket:
        """``emit`` is called by the event loop, which must be the caller's. Raises TooLong, TooBusy, EngineClosed."""
        if asked.tokens > self.most_tokens:
            raise TooLong(self.most_tokens)
        if self._closing:
            raise EngineClosed
        if len(self._tasks) >= self._limits.rows + self._limits.waiting:
            raise TooBusy
        if not self._tasks:
            self._busy_since = time.monotonic()
        task = asyncio.get_running_loop().create_task(self._answered(asked, emit))
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return Ticket(task.cancel)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._tasks:
            self._seconds += time.monotonic() - self._busy_since

    def forget(self, which: Callable[[Owner], bool]) -> None:
        """Prompts are kept by vLLM, for each tenant apart."""

    def stats(self) -> Stats:
        waiting = max(0, len(self._tasks) - self._limits.rows)
        done = [name for name, p in self._publications.items() if p.task.done() and not p.task.cancelled()]
        return Stats(
            active=len(self._tasks) - waiting,
            waiting=waiting,
            tokens=self._tokens,
            prompt_tokens=self._prompt_tokens,
            cached=self._cached,
            seconds=self._seconds,
            prefix_bytes=0,
            adapters=tuple(name for name in done if self._publications[name].task.exception() is None),
        )

    async def disconnect(self) -> None:
        self._closing = True
        tasks = [*self._tasks, *(p.task for p in self._publications.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    def close(self) -> None:
        """All has ended with the event loop."""

    async def _answered(self, asked: Generation, emit: Emit) -> None:
        try:
            await self._answer(asked, emit)
        except asyncio.CancelledError:
            emit(Ended("failed", "the server is shutting down", 503))  # nobody listens, if the client has left
            raise
        except Refused as error:
            emit(Ended("failed", f"the engine: {error}", error.status))
        except httpx.HTTPError as error:
            log.warning("the engine at --engine: %r", error)
            emit(Ended("failed", "the engine does not answer", 503))
        except TunewrightError as error:  # of publishing: its paths are for the log alone
            log.warning("publishing an adapter: %s", error)
            emit(failure(error))
        except Exception as error:
            log.exception("a request to the engine failed")
            emit(failure(error))

    async def _answer(self, asked: Generation, emit: Emit) -> None:
        for again in (True, False):
            name, publication = await self._name(asked)
            url, body = f"{self._remote.api}/completions", vllm.request(asked, name, self._secret)
            async with self._client().stream("POST", url, json=body) as response:
                if response.status_code == 404 and publication is not None and again:
                    if self._publications.get(name) is publication:  # vLLM was started again without our adapters
                        del self._publications[name]
                    continue
                if response.status_code != 200:
                    raise Refused.by(response.status_code, await response.aread())
                await self._read(response, asked, emit)
            return

    async def _read(self, response: httpx.Response, asked: Generation, emit: Emit) -> None:
        begun, ended = False, None
        async for line in response.aiter_lines():
            for event in vllm.events(line, asked):
                if not begun:
                    begun, self._prompt_tokens = True, self._prompt_tokens + len(asked.prompt)
                if isinstance(event, Ended):
                    ended = ended or event
                elif isinstance(event, Begun):
                    self._cached += event.cached
                    emit(event)
                elif ended is None:
                    self._tokens += 1
                    emit(event)
        if ended is None:
            raise Refused("it stopped in the middle of an answer")
        emit(ended)

    async def _name(self, asked: Generation) -> tuple[str, _Publication | None]:
        """What is asked there: the base, or an adapter, and how it was published. Raises Refused, and what publishing
        raises."""
        if asked.adapter is None:
            return self._remote.model, None
        assert asked.adapter.run is not None
        name = name_of(asked.adapter.sha256, asked.scale)
        publication = self._publications.get(name)
        if publication is None or publication.is_void:
            task = asyncio.get_running_loop().create_task(self._publish(name, asked.adapter.run))
            task.add_done_callback(lambda t: t.cancelled() or t.exception())  # also if nobody waits for it any more
            publication = self._publications[name] = _Publication(task, time.monotonic())
        await asyncio.shield(publication.task)
        return name, publication

    async def _publish(self, name: str, run: Path) -> None:
        response = await self._client().get(f"{self._remote.api}/models")
        if name in [model.id for model in vllm.models(response)]:  # by its job, or by a server before this one
            return
        command = [sys.executable, "-m", PUBLISH, str(run), *self._remote.arguments(), "--parent", str(os.getpid())]
        async with self._one_at_a_time:
            nothing, piped = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE
            process = await asyncio.create_subprocess_exec(*command, stdin=nothing, stdout=nothing, stderr=piped)
            try:
                _, errors = await process.communicate()
            except asyncio.CancelledError:
                process.terminate()
                await process.wait()
                raise
        if process.returncode:
            raise programs.error_of(process.returncode, errors.decode("utf-8", "replace"), str(run))

    def _client(self) -> httpx.AsyncClient:
        """Made in the event loop that uses it. As many requests as rows are under way; others wait for one of these."""
        if self._http is None:
            options = openai_server.options(self._remote.endpoint(self._remote.model))
            connections = httpx.Limits(max_connections=self._limits.rows)
            self._http = httpx.AsyncClient(**options, limits=connections)
        return self._http
