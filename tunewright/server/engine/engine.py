"""All requests on one base, answered in one batch that they join and leave, by one thread.

A turn of the thread is one pass over the weights: the next token of every row, and a limited number of tokens of
prompts (chunked prefill: Agrawal et al. 2023, 2308.16369). What a request gets does not depend on what else is in the
batch, but for the last bits.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from tunewright.core.config import AdapterConfig
from tunewright.model.decoding.slots import Chunk, Slots
from tunewright.model.decoding.stack import supports
from tunewright.model.language_model import LanguageModel
from tunewright.server.engine.choosing import RowChoice, logprob_of
from tunewright.server.engine.generation import (
    AdapterFile,
    Begun,
    Emit,
    Ended,
    EngineClosed,
    Generation,
    NewToken,
    TooBusy,
    TooLong,
    failure,
)
from tunewright.server.engine.grammar import Grammars
from tunewright.server.engine.prefixes import Owner, PrefixCache
from tunewright.server.engine.requests import Limits, Row, Stats, Ticket
from tunewright.system import crowding
from tunewright.train import checkpoints

CHUNK = 256  # tokens of prompts that are read with a step: long prompts must not stop the answers of others
log = logging.getLogger(__name__)


class Engine:
    """``grammars``: of the model's tokenizer; None where llguidance is not installed."""

    supports_scale = True

    def __init__(self, model: LanguageModel, limits: Limits, grammars: Grammars | None = None) -> None:
        self._slots, self._limits, self._grammars = Slots(model), limits, grammars
        self._prefixes = PrefixCache(limits.prefix_bytes)
        self._changed = threading.Condition()
        self._waiting: deque[Row] = deque()
        self._reading: deque[Row] = deque()
        self._active: list[Row] = []  # in the order of the slots
        self._recent: dict[str, None] = {}  # adapters, those used last at the end
        self._forget: list[Callable[[Owner], bool]] = []
        self._closing = False
        self._tokens = self._prompt_tokens = self._cached = 0
        self._seconds = 0.0
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def refuses(self, config: AdapterConfig, step: int | None) -> str | None:
        """Why an adapter cannot be served."""
        if supports(config):
            return None
        return f"the engine has no {config.kind} adapters; export it merged, and serve it with another program."

    @property
    def most_tokens(self) -> int:
        """Of a request: prompt and answer."""
        return min(self._limits.context, self._limits.cache_bytes // self._slots.bytes_per_token)

    def submit(self, asked: Generation, emit: Emit) -> Ticket:
        """``emit`` is called by the engine's thread. Raises TooLong, TooBusy, EngineClosed."""
        if asked.tokens > self.most_tokens:
            raise TooLong(self.most_tokens)
        with self._changed:
            if self._closing:
                raise EngineClosed
            if len(self._waiting) >= self._limits.waiting:
                raise TooBusy
            ticket = Ticket(self._wake)
            self._waiting.append(Row(asked, emit, ticket))
            self._changed.notify()
        return ticket

    def forget(self, which: Callable[[Owner], bool]) -> None:
        """Drop prompts that are kept: of a tenant or a model that is deleted."""
        with self._changed:
            self._forget.append(which)
            self._changed.notify()

    def stats(self) -> Stats:
        return Stats(
            active=len(self._active) + len(self._reading),
            waiting=len(self._waiting),
            tokens=self._tokens,
            prompt_tokens=self._prompt_tokens,
            cached=self._cached,
            seconds=self._seconds,
            prefix_bytes=self._prefixes.size,
            adapters=self._slots.stack.loaded,
        )

    async def disconnect(self) -> None:
        """Its thread is no matter of the event loop."""

    def close(self) -> None:
        """Requests that are not finished fail."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _run(self) -> None:
        with crowding.giving_way():
            self._turns()
        self._fail(Ended("failed", "the server is shutting down"))

    def _turns(self) -> None:
        crowd = crowding.now(self._threads)
        while True:
            with self._changed:
                while not (self._waiting or self._reading or self._active or self._forget or self._closing):
                    self._changed.wait()
                for which in self._forget:
                    self._prefixes.forget(which)
                self._forget.clear()
                if self._closing:
                    break
            crowd = crowding.adapted(crowd)
            crowding.use(crowd.threads)
            started = time.monotonic()
            try:
                self._turn()
            except Exception as error:  # one bad turn must not end the server: those in the batch fail, others continue
                log.exception("a step of the engine failed")
                self._fail(failure(error))
            self._seconds += time.monotonic() - started

    def _turn(self) -> None:
        self._leave_cancelled()
        self._begin()
        reading, chunks = self._chunks()
        if not (self._active or chunks):
            return
        logits_BV, logits_CV = self._slots.advance([row.last for row in self._active], chunks)
        self._continue(logits_BV)
        for row, chunk, logits_V in zip(reading, chunks, logits_CV, strict=True):
            row.used += len(chunk.ids)
            if row.used == len(row.asked.prompt):
                self._join(row, logits_V)

    def _leave_cancelled(self) -> None:
        for row in reversed(range(len(self._active))):
            if self._active[row].ticket.cancelled:
                self._leave(row)
        self._reading = deque(r for r in self._reading if not r.ticket.cancelled)
        with self._changed:
            self._waiting = deque(r for r in self._waiting if not r.ticket.cancelled)

    def _begin(self) -> None:
        """Take on waiting requests, in order, as long as they fit."""
        while self._waiting and self._fits(self._waiting[0].asked):
            with self._changed:
                row = self._waiting.popleft()
            try:
                if not self._load(row.asked.adapter):
                    with self._changed:
                        self._waiting.appendleft(row)  # every place has an adapter that is in use
                    return
                matcher = None
                if row.asked.grammar is not None:
                    assert self._grammars is not None
                    matcher = self._grammars.matcher(row.asked.grammar)
                row.choice = RowChoice(row.asked.choosing, row.asked.prompt, matcher)
                self._start_reading(row)
            except Exception as error:  # its weights cannot be read, or memory has run out: others may be answered
                log.exception("a request could not begin")
                row.emit(failure(error))
                continue
            self._reading.append(row)

    def _start_reading(self, row: Row) -> None:
        prompt = row.asked.prompt
        known, row.cached = self._prefixes.longest(self._owner(row), prompt)
        row.cache, row.used = self._slots.new_cache(len(prompt)), row.cached
        for own, kept in zip(row.cache, known, strict=bool(known)):
            own[:, :, : row.cached] = kept[:, :, : row.cached]
        self._prompt_tokens += len(prompt)
        self._cached += row.cached

    def _fits(self, asked: Generation) -> bool:
        """Whether it may join. The cache has as many places for each row as for the longest; what others have left is
        given back if it would not fit otherwise."""
        rows = [*self._active, *self._reading]
        if len(rows) >= self._limits.rows:
            return False
        longest = max([asked.tokens, *(r.asked.tokens for r in rows)])
        most = self._limits.cache_bytes // self._slots.bytes_per_token
        have_rows, have_tokens = self._slots.allocated
        if max(len(rows) + 1, have_rows) * max(longest, have_tokens) > most:
            self._slots.shrink()
        return (len(rows) + 1) * longest <= most

    def _load(self, adapter: AdapterFile | None) -> bool:
        """Whether the adapter is in memory now."""
        if adapter is None:
            return True
        stack, key = self._slots.stack, adapter.sha256
        if key not in stack.loaded:
            if len(stack.loaded) >= self._limits.adapters:
                in_use = {r.asked.use.adapter for r in (*self._active, *self._reading)}
                idle = next((k for k in self._recent if k not in in_use), None)
                if idle is None:
                    return False
                stack.unload(idle)
                del self._recent[idle]
            checkpoints.check_weights(adapter.file, key)
            stack.load(key, checkpoints.read_weights(adapter.file), adapter.config)
        self._recent.pop(key, None)
        self._recent[key] = None
        return True

    def _chunks(self) -> tuple[list[Row], list[Chunk]]:
        """The next tokens of the prompts that have waited longest, and whose they are."""
        room, reading, chunks = CHUNK, list[Row](), list[Chunk]()
        for row in self._reading:
            if room == 0:
                break
            ids = row.asked.prompt[row.used : row.used + room]
            reading.append(row)
            chunks.append(Chunk(row.cache, row.used, ids, row.asked.use))
            room -= len(ids)
        return reading, chunks

    def _join(self, row: Row, logits_V: Tensor) -> None:
        """A prompt has been read: the first token of its answer."""
        self._prefixes.keep(self._owner(row), row.asked.prompt, row.cache)
        row.emit(Begun(row.cached))
        if self._write(row, self._chosen(row, logits_V), logits_V):
            self._slots.join(row.cache, row.used, row.asked.use)
            self._active.append(row)
        self._reading.remove(row)  # only now: if joining fails, its request fails with the others
        row.cache = []

    def _continue(self, logits_BV: Tensor) -> None:
        """The next token of every row."""
        best_B = logits_BV.argmax(-1).tolist() if any(r.choice.is_greedy for r in self._active) else []
        unfinished = [
            self._write(row, best_B[n] if row.choice.is_greedy else self._chosen(row, logits_BV[n]), logits_BV[n])
            for n, row in enumerate(self._active)
        ]
        for row in reversed(range(len(unfinished))):
            if not unfinished[row]:
                self._leave(row)

    @staticmethod
    def _chosen(row: Row, logits_V: Tensor) -> int | None:
        """The next token; None, if it cannot be chosen, which is the end of this request and of no other."""
        try:
            return row.choice.next(logits_V)
        except Exception as error:
            log.exception("a token could not be chosen")
            row.emit(failure(error))
            return None

    def _write(self, row: Row, token: int | None, logits_V: Tensor) -> bool:
        """Report a token of the answer; whether more follow."""
        asked, matcher = row.asked, row.choice.matcher
        if token is None:
            return False
        if matcher is not None and matcher.error:
            row.emit(Ended("failed", f"the grammar cannot be followed: {matcher.error}"))
            return False
        if token in asked.stop:
            row.emit(Ended("stop"))
            return False
        row.written, row.last = row.written + 1, token
        self._tokens += 1
        row.emit(NewToken(token, None if asked.logprobs is None else logprob_of(logits_V, token, asked.logprobs)))
        if matcher is not None and matcher.finished:
            row.emit(Ended("stop"))
            return False
        if row.written == asked.max_tokens:
            row.emit(Ended("length"))
            return False
        return True

    def _leave(self, row: int) -> None:
        self._slots.leave(row)
        self._active[row] = self._active[-1]
        self._active.pop()

    def _fail(self, ended: Ended) -> None:
        """All that are in the batch or being read; when closing, those that wait, too."""
        failed = [*self._active, *self._reading]
        if self._closing:
            with self._changed:
                failed += self._waiting
                self._waiting.clear()
        self._slots.clear()
        self._active, self._reading = [], deque()
        for row in failed:
            row.emit(ended)

    @staticmethod
    def _owner(row: Row) -> Owner:
        return Owner(row.asked.tenant, row.asked.use)
