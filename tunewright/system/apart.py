"""Has requests answered by other processes, with limits of time and memory.

``python -m tunewright.system.apart MODULE PIPE MEMORY`` answers with the function ``answer`` of a module. A process is
started before it is needed and answers again and again, because its imports take seconds. What a request does to it,
it does not do to this one: it is the first that Linux ends when there is no memory left, and it ends with the thread
that started it.
"""

from __future__ import annotations

import ctypes
import importlib
import resource
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

LARGEST = 64 << 20  # bytes of an answer
GRACE_SECONDS = 5.0  # for a process whose end is near
KEPT_KB = 1 << 20  # a process that has used more memory is ended, which gives it back
OUT_OF_MEMORY = 3  # exit status


class GivenUp(Exception):
    """A request without an answer: what it did, as the end of a sentence."""


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


class Apart:
    """``memory``: bytes of address space of each process. As many are used as threads ask at a time."""

    def __init__(self, module: str, memory: int) -> None:
        self._module, self._memory = module, memory
        self._lock = threading.Lock()
        self._busy: list[_Process] = []
        self._closed = False
        self._idle = [self._start()]

    def ask(self, request: bytes, seconds: float) -> bytes:
        """Raises GivenUp."""
        process, in_time, answer, used = self._take(), True, None, 0
        try:
            process.pipe.send_bytes(request)
            in_time = process.pipe.poll(seconds)
            if in_time:
                answer = process.pipe.recv_bytes(LARGEST)
                used = int(process.pipe.recv_bytes())
        except (EOFError, OSError):
            pass  # it has ended
        kept = answer is not None and 0 < used < KEPT_KB
        with self._lock:
            self._busy.remove(process)
            if kept:
                self._idle.append(process)
        status = 0 if kept else process.end(0.0 if answer or not in_time else GRACE_SECONDS)
        if answer is not None:
            return answer
        if not in_time:
            raise GivenUp(f"took longer than {seconds:,.0f} s")
        if status in (OUT_OF_MEMORY, -signal.SIGKILL, -signal.SIGABRT):
            raise GivenUp(f"took more than {self._memory / 1e9:,.1f} GB of memory")
        raise GivenUp(f"ended the process that did it (status {status})")

    def close(self) -> None:
        """What is being asked is given up."""
        with self._lock:
            self._closed = True
            for process in self._busy:
                process.started.kill()
            idle, self._idle = self._idle, []
        for process in idle:
            process.end()

    def _take(self) -> _Process:
        with self._lock:
            gone = [process for process in self._idle if process.started.poll() is not None]
            self._idle = [process for process in self._idle if process not in gone]
            process = self._idle.pop() if self._idle else self._start()
            self._busy.append(process)
            if self._closed:
                process.started.kill()
        for each in gone:
            each.end()
        return process

    def _start(self) -> _Process:
        ours, theirs = Pipe()
        with theirs:
            number = theirs.fileno()
            command = [sys.executable, "-m", __name__, self._module, str(number), str(self._memory)]
            try:
                started = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(number,))
            except OSError:
                ours.close()
                raise
        return _Process(started, ours)


def _confine(memory: int) -> None:
    with suppress(OSError, AttributeError):  # Linux alone has these
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # with the thread that started it
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0)):
        with suppress(ValueError, OSError):  # a limit that this system does not have
            resource.setrlimit(kind, (most, most))


def main() -> None:
    module, pipe, memory = importlib.import_module(sys.argv[1]), Connection(int(sys.argv[2])), int(sys.argv[3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the other process decides
    _confine(memory)
    try:
        while True:
            pipe.send_bytes(module.answer(pipe.recv_bytes()))
            pipe.send_bytes(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss).encode())
    except (EOFError, BrokenPipeError):  # nobody asks any more
        pass
    except MemoryError:
        sys.exit(OUT_OF_MEMORY)


if __name__ == "__main__":
    main()
