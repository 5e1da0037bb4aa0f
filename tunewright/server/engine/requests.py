"""Requests on their way through an engine, and the engine's limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tunewright.core.config import AdapterConfig
from tunewright.model.decoding.slots import Cache
from tunewright.server.engine.choosing import RowChoice
from tunewright.server.engine.generation import Emit, Generation
from tunewright.server.engine.prefixes import Owner


@dataclass(frozen=True)
class Limits:
    """``rows`` of the batch; ``waiting`` requests besides; ``cache_bytes`` of all rows, each counted as long as the
    longest; ``prefix_bytes`` of prompts that are kept; ``adapters`` in memory."""

    rows: int = 32
    waiting: int = 256
    cache_bytes: int = 2 << 30
    prefix_bytes: int = 512 << 20
    adapters: int = 16
    context: int = 2048


@dataclass(frozen=True)
class Stats:
    """``tokens``: of answers, and ``prompt_tokens`` with those of them that were ``cached``, since the start."""

    active: int
    waiting: int
    tokens: int
    prompt_tokens: int
    cached: int
    seconds: float
    prefix_bytes: int
    adapters: tuple[str, ...]


class Ticket:
    """A request that was taken on. ``cancel`` frees its place at the next step."""

    def __init__(self, wake: Callable[[], object]) -> None:
        self.cancelled = False
        self._wake = wake

    def cancel(self) -> None:
        self.cancelled = True
        self._wake()


class Row:
    """A request on its way: waiting, being read (``cache`` holds ``used`` tokens of its prompt), or a row of the
    batch."""

    def __init__(self, asked: Generation, emit: Emit, ticket: Ticket) -> None:
        self.asked, self.emit, self.ticket = asked, emit, ticket
        self.cache: Cache = []
        self.used = self.cached = self.written = self.last = 0
        self.choice: RowChoice


class Backend(Protocol):
    """What answers for a base: our `Engine`, or vLLM as `RemoteEngine`. ``supports_scale``: whether a request may
    multiply a trained update."""

    @property
    def supports_scale(self) -> bool: ...

    @property
    def most_tokens(self) -> int:
        """Of a request: prompt and answer."""
        ...

    def refuses(self, config: AdapterConfig, step: int | None) -> str | None:
        """Why an adapter cannot be served, if it cannot. ``step``: of a checkpoint."""
        ...

    def submit(self, asked: Generation, emit: Emit) -> Ticket: ...

    def forget(self, which: Callable[[Owner], bool]) -> None:
        """Drop prompts that are kept: of a tenant or a model that is deleted."""
        ...

    def stats(self) -> Stats: ...

    async def disconnect(self) -> None:
        """Before the event loop ends."""

    def close(self) -> None:
        """Requests that are not finished fail."""
        ...
