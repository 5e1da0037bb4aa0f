"""OpenAI's python grader: a user's ``def grade(sample, item)``, in a process of its own with limits of time and memory.

One process for each source is kept alive. It ends with this one, whose end closes its stdin.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tunewright.core.errors import ConfigError
from tunewright.data.graders.grade import Item, Output, Unscored

SECONDS = 5.0  # for one answer
START_SECONDS = 60.0  # for the imports of the source
MEMORY = 2 << 30  # bytes of address space: numpy alone maps hundreds of MB
WORKER = Path(__file__).with_name("python_worker.py")
QUIET = {"PATH": os.defpath, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # no keys, tokens or proxies


@dataclass(frozen=True)
class PythonGrader:
    source: str
    seconds: float = SECONDS
    fields: frozenset[str] = frozenset()

    def grade(self, item: Item, output: Output) -> float:
        sample = {"output_text": output.text, "output_json": output.json}
        reply = _worker(self.source).ask(json.dumps({"sample": sample, "item": dict(item)}), self.seconds)
        if "error" in reply:
            raise Unscored(str(reply["error"]))
        return float(reply["reward"])  # type: ignore[arg-type]

    def check(self, where: str) -> None:
        """Raises CONFIG_RANGE unless the source runs and defines grade."""
        if problem := _worker(self.source).start():
            fix = "define grade(sample, item), which returns a number from 0 to 1."
            raise ConfigError("CONFIG_RANGE", f"the grader's source fails: {problem}.", where=where, fix=fix)


@functools.lru_cache(16)
def _worker(source: str) -> Worker:
    return Worker(source)


class Worker:
    """A process that grades, started when it is first asked, and again after it was ended for taking too long."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""

    def start(self) -> str:
        """What is wrong with the source; empty if it runs."""
        if self._process is not None:
            return ""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "grader.py"
            file.write_text(self._source, encoding="utf-8")
            command = [sys.executable, "-I", str(WORKER), str(file), str(MEMORY)]
            self._process, self._unread = (
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=QUIET
                ),
                b"",
            )
            ready = self._reply(START_SECONDS)
        if "error" in ready:
            self.close()
        return str(ready.get("error", ""))

    def ask(self, request: str, seconds: float) -> dict[str, object]:
        """The reply to a request, or {"error": ...}."""
        if problem := self.start():
            return {"error": problem}
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request.encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            self.close()
            return {"error": "the grader's process ended"}
        return self._reply(seconds)

    def _reply(self, seconds: float) -> dict[str, object]:
        assert self._process is not None
        assert self._process.stdout is not None
        end, pipe = time.monotonic() + seconds, self._process.stdout.fileno()
        while b"\n" not in self._unread:
            ready, _, _ = select.select([pipe], [], [], max(0.0, end - time.monotonic()))
            part = os.read(pipe, 1 << 16) if ready else b""
            if not part:
                self.close()
                return {"error": "the grader's process ended" if ready else f"no reply within {seconds:g} s"}
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        reply: dict[str, object] = json.loads(line)
        return reply

    def close(self) -> None:
        """End the process; the next request starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    assert stream is not None
                    stream.close()
            process.wait()

    def __del__(self) -> None:
        self.close()
