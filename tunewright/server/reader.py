"""Has files of rows read by other processes, with limits of time and memory: `rows`.

A process is started before it is needed and answers again and again, because to import what reads rows takes seconds,
and to read a usual file takes less than one.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from tunewright.core.config import Config
from tunewright.core.errors import DataError, data_error
from tunewright.core.locations import title
from tunewright.server.rows import OUT_OF_MEMORY, Answer, Page, Part, Request, Wrong
from tunewright.system import memory

LARGEST = 64 << 20  # bytes of an answer
GRACE_SECONDS = 5.0  # for a process whose end is near
FEWER = "upload fewer or shorter rows, or train with `tunewright run`, which has no such limit."


@dataclass(frozen=True)
class ReadingLimits:
    """``at_once``: files that are read at a time; ``seconds`` for one, and ``per_mib`` more for each MiB of it;
    ``memory``: bytes of address space, None: half of the machine's memory."""

    at_once: int = 2
    seconds: float = 120.0
    per_mib: float = 10.0
    memory: int | None = None


class WrongRows(DataError):
    """As the process that read the rows reports it, which need not have sent every problem."""

    def __init__(self, wrong: Wrong) -> None:
        self.problems = wrong.problems
        Exception.__init__(self, wrong.text)


@dataclass(frozen=True)
class _Process:
    started: subprocess.Popen[bytes]
    pipe: Connection

    def end(self, grace: float = 0.0) -> int:
        """Its exit status, once it has ended by itself, or was killed after ``grace`` seconds."""
        self.pipe.close()
        with suppress(subprocess.TimeoutExpired):
            return self.started.wait(grace)
        self.started.kill()
        return self.started.wait()


class Reader:
    def __init__(self, limits: ReadingLimits) -> None:
        self._limits = limits
        self._memory = limits.memory or int(memory.available().total / 2)
        self._threads = ThreadPoolExecutor(limits.at_once, "reader")
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._busy: list[_Process] = []
        self._closed = False
        self._idle.append(self._start())

    def submit(self, config: Config, part: Part | None = None) -> Future[Page | None]:
        """Reads the rows of a config, as a run will, when it is their turn. Raises DataError; DATA_READING if they
        take too much."""
        return self._threads.submit(self._read, config, part)

    def close(self) -> None:
        """What is being read is given up."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._closed = True
            for process in self._busy:
                process.started.kill()
        self._threads.shutdown()
        for process in self._idle:
            process.end()

    def _start(self) -> _Process:
        ours, theirs = Pipe()
        with theirs:
            number = theirs.fileno()
            command = [sys.executable, "-m", "tunewright.server.rows", str(number), str(self._memory)]
            try:
                started = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=(number,)
                )
            except OSError:
                ours.close()
                raise
        return _Process(started, ours)

    def _take(self) -> _Process:
        with self._lock:
            alive = [process for process in self._idle if process.started.poll() is None]
            gone = [process for process in self._idle if process not in alive]
            process = alive.pop() if alive else self._start()
            self._idle[:] = alive
            self._busy.append(process)
            if self._closed:
                process.started.kill()
        for each in gone:
            each.end()
        return process

    def _read(self, config: Config, part: Part | None) -> Page | None:
        seconds = self._limits.seconds + self._limits.per_mib * _size(config) / (1 << 20)
        process, in_time, answer = self._take(), True, None
        try:
            process.pipe.send_bytes(Request(config=config, part=part).model_dump_json().encode())
            in_time = process.pipe.poll(seconds)
            if in_time:
                answer = Answer.model_validate_json(process.pipe.recv_bytes(LARGEST))
        except (EOFError, OSError):
            pass  # it has ended
        finally:
            kept = answer is not None and not answer.last
            with self._lock:
                self._busy.remove(process)
                if kept:
                    self._idle.append(process)
            status = 0 if kept else process.end(grace=GRACE_SECONDS if in_time else 0.0)
        if answer is None:
            raise self._given_up(config, status, None if in_time else seconds)
        if answer.wrong is not None:
            raise WrongRows(answer.wrong)
        return answer.page

    def _given_up(self, config: Config, status: int, seconds: float | None) -> DataError:
        if seconds is not None:
            what = f"reading and auditing the rows took longer than {seconds:,.0f} s."
        elif status in (OUT_OF_MEMORY, -signal.SIGKILL, -signal.SIGABRT):
            what = f"reading and auditing the rows took more than {self._memory / 1e9:,.1f} GB of memory."
        else:
            what = f"the process that read the rows ended unexpectedly (status {status})."
        return data_error("DATA_READING", what, where=title(config.data.train), fix=FEWER)


def _size(config: Config) -> int:
    """Bytes of the files."""
    files = [Path(str(path)) for path in (config.data.train, config.data.dev) if path]
    return sum(file.stat().st_size for file in files if file.exists())
