"""Other programs, and what they print last when they fail; and modules of this package as processes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence

from tunewright.core.errors import TrainError, TunewrightError


def failure(command: Sequence[str]) -> str | None:
    """Run a program to its end. Returns None, or the last line of its output if its exit status is not 0."""
    done = subprocess.run(list(command), capture_output=True, text=True, errors="replace", check=False)
    return last_line(done.stderr.strip() or done.stdout)[:300] if done.returncode else None


def last_line(output: str) -> str:
    return (output.strip().splitlines() or ["no output"])[-1]


def error_of(status: int, output: str, where: str) -> TunewrightError:
    """The error of a worker process, which it prints as JSON on its last line; anything else is a crash. ``status``: of
    its exit."""
    last = last_line(output)
    kind = TunewrightError if status == TunewrightError.exit_code else TrainError
    try:
        first = json.loads(last)["error"][0]
        return kind(first["code"], first["message"], where=first["where"], fix=first["fix"])
    except (ValueError, KeyError, TypeError):
        return TrainError("TRAIN_WORKER", f"the training process ended unexpectedly: {last}", where=where)
