"""llama.cpp on this machine: llama-server, started on a GGUF file and ended, or the package llama-cpp-python. Keys and
values are cached in float32."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from tunewright.core.errors import MissingExtra, RunError
from tunewright.core.records import ExportCheck
from tunewright.core.run_folder import Run
from tunewright.export.gguf.model import FLOATS

START_SECONDS = 300.0


def exported(run: Run, exports: Sequence[ExportCheck]) -> ExportCheck:
    """The GGUF file of a run that is rounded least. Raises RUN_INCOMPLETE if there is none that is not quantised."""
    files = {check.dtype: check for check in exports if check.kind == "gguf"}
    for kind in FLOATS:
        if kind in files:
            return files[kind]
    raise RunError(
        "RUN_INCOMPLETE",
        "the run has no GGUF file in float32, float16 or bfloat16 for llama.cpp on this machine.",
        where=str(run.path),
        fix=f"`tunewright export {run.path} --to gguf:f16`, or name a running server: --at URL.",
    )


@contextmanager
def serving(file: Path, threads: int, context: int) -> Iterator[str]:
    """The URL of a llama-server with this file. Raises MISSING_PACKAGE if there is no llama-server, and REMOTE_FAILED
    if it ends."""
    program = shutil.which("llama-server")
    if program is None:
        raise MissingExtra("llama.cpp", "asking about a GGUF file", "brew install llama.cpp", where="llama-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = ["-m", str(file), "--host", "127.0.0.1", "--port", port]
    how = ["-c", str(context), "-np", "1", "-t", str(threads), "-ctk", "f32", "-ctv", "f32", "-fa", "off", "--jinja"]
    url = f"http://127.0.0.1:{port}"
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen([program, *where, *how], stdout=log, stderr=subprocess.STDOUT, text=True) as process,
    ):
        try:
            until = time.monotonic() + START_SECONDS
            while not _ready(url):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    last = (log.read().strip().splitlines() or ["no output"])[-1]
                    raise RunError("REMOTE_FAILED", f"llama-server does not start: {last}", where=str(file))
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()


def _ready(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200  # without a proxy
    return False
