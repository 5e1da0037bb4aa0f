"""llama.cpp on this machine: llama-server, started on a GGUF file and ended, or the package llama-cpp-python. Keys and
values are cached in float32."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from tunewright.core.errors import MissingExtra, RunError
from tunewright.export.kind import Dtype

START_SECONDS = 300.0
FILE_TYPES: dict[int, Dtype] = {
    0: "float32",
    1: "float16",
    32: "bfloat16",
}  # general.file_type of files that are not quantised


def exported(run: Path) -> tuple[Path, Dtype]:
    """(the GGUF file of a run that is rounded least, the dtype of its weights). Raises RUN_INCOMPLETE if there is none
    that is not quantised."""
    from gguf import GGUFReader

    for dtype in FILE_TYPES.values():
        for file in sorted((run / "gguf").glob("*.gguf")):
            fields = GGUFReader(file).fields
            kind = fields["general.type"].contents() if "general.type" in fields else "model"
            if kind == "model" and FILE_TYPES.get(fields["general.file_type"].contents()) == dtype:
                return file, dtype
    raise RunError(
        "RUN_INCOMPLETE",
        "the run has no GGUF file in float32, float16 or bfloat16 for llama.cpp on this machine.",
        where=str(run),
        fix=f"`tunewright export {run} export.to=[gguf]`, or name a running server: --at URL.",
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
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    return False
