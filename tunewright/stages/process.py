"""Training in a separate process: the parent holds the run's lock, shows progress and forwards signals; the worker
writes the run folder. Its files do not depend on which process wrote them."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tunewright.core import programs, records
from tunewright.core.config import Plan
from tunewright.core.records import METRICS, StartLine
from tunewright.runtime.context import Context

POLL_SECONDS = 0.5


def train(context: Context) -> None:
    """Trains to the end, or raises the worker's error."""
    run, steps = context.run, records.read(context.run.plan, Plan).steps
    command = [sys.executable, "-m", "tunewright.stages.worker", str(run.path), "--under-lock"]
    with tempfile.TemporaryFile() as errors:
        worker = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True)
        shown, _ = _logged(context)
        with _signals_to(worker), context.console.bar("train", steps, shown) as tick:
            while worker.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    worker.wait(POLL_SECONDS)
                step, loss = _logged(context)
                if step > shown:
                    tick(step - shown, f"loss {loss:.3f}")
                    shown = step
        if worker.returncode:
            errors.seek(0)
            raise programs.error_of(worker.returncode, errors.read().decode(errors="replace"), str(run.path))


def _logged(context: Context) -> tuple[int, float]:
    """The last step in metrics.jsonl, and its loss."""
    last = (0, 0.0)
    for line in records.read_lines(context.run.metrics, METRICS):
        if not isinstance(line, StartLine):
            last = (line.step, line.loss)
    return last


@contextmanager
def _signals_to(worker: subprocess.Popen[bytes]) -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM go to the worker, which saves and exits; this process waits for it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def forward(number: int, _: Any) -> None:
        worker.send_signal(number)

    before = {n: signal.signal(n, forward) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
