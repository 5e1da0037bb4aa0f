"""Other programs, and what they print last when they fail."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence


def failure(command: Sequence[str]) -> str | None:
    """Run a program to its end. Returns None, or the last line of its output if its exit status is not 0."""
    done = subprocess.run(list(command), capture_output=True, text=True, errors="replace", check=False)
    return last_line(done.stderr.strip() or done.stdout)[:300] if done.returncode else None


def last_line(output: str) -> str:
    return (output.strip().splitlines() or ["no output"])[-1]
