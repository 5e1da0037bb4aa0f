"""The protocol between a timed process and the one that times it. Standard library only: peers have their own
environments.

The timed process reads its setup from the first line on stdin and answers {"ready": true}. For each line "step" it
takes one optimizer step and answers {"loss", "seconds"}; to "end" it answers with its peak memory. So processes can
take turns, step by step, and none runs while another is timed.
"""

from __future__ import annotations

import json
import os
import resource
import select
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any


class Wire:
    """The end of the timed process. What libraries print goes to stderr."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.setup: dict[str, Any] = json.loads(sys.stdin.readline())

    def send(self, **values: Any) -> None:
        print(json.dumps(values), file=self.out, flush=True)

    def wait(self) -> bool:
        """Wait for a line: true if it requests a step; otherwise send the final figures."""
        if sys.stdin.readline().strip() == "step":
            return True
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        names = ("torch", "transformers", "peft", "trl", "tunewright")
        results = {d.metadata["Name"].lower() for d in metadata.distributions()}
        self.send(peak_gb=peak / 1e9, versions={n: metadata.version(n) for n in names if n in results})
        return False


def serve(step: Callable[[int], float], wire: Wire) -> None:
    """Take steps 0, 1, ... on request. ``step`` returns its loss."""
    wire.send(ready=True)
    number = 0
    while wire.wait():
        start = time.perf_counter()
        loss = step(number)
        wire.send(loss=loss, seconds=time.perf_counter() - start)
        number += 1


def take_turns(subjects: list[Subject], rounds: int) -> tuple[dict[str, list[dict[str, float]]], dict[str, Any]]:
    """Rounds of one step of each, in alternating order, so that a slow minute affects all alike. The steps, and what
    each process says at its end, by name."""
    taken: dict[str, list[dict[str, float]]] = {s.name: [] for s in subjects}
    for i in range(rounds):
        for subject in subjects if i % 2 == 0 else subjects[::-1]:
            taken[subject.name].append(subject.step())
    return taken, {s.name: s.end() for s in subjects}


class Subject:
    """The end that times: starts a process and requests its steps. One that takes longer than ``within`` seconds to
    start is ended."""

    def __init__(self, python: Path, script: Path, setup: dict[str, Any], within: float | None = None) -> None:
        self.name, begun = str(setup["name"]), time.monotonic()
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONWARNINGS": "ignore",
        }
        environment["OMP_NUM_THREADS"] = str(setup["threads"])
        self.log = Path(setup["folder"]) / f"{self.name.replace(' ', '-')}.log"
        self.process = subprocess.Popen(
            [str(python), str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            env=environment,
        )
        self._send(json.dumps(setup))
        self.ready = bool(self._receive(within).get("ready"))
        self.start_seconds = time.monotonic() - begun

    def step(self, within: float | None = None) -> dict[str, float]:
        """{"loss", "seconds"}, or {} if the process has died (most likely out of memory), or was ended because it took
        longer than ``within`` seconds."""
        self._send("step")
        return self._receive(within)

    def end(self) -> dict[str, Any]:
        """{"peak_gb", "versions"}, or {} if the process has died."""
        self._send("end")
        results = self._receive()
        self.process.wait()
        return results

    def _send(self, line: str) -> None:
        assert self.process.stdin is not None
        try:
            print(line, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            self.ready = False

    def _receive(self, within: float | None = None) -> dict[str, Any]:
        assert self.process.stdout is not None
        # Nothing is buffered: each line is the answer to one of ours, and is read before the next is sent.
        if within is not None and not select.select([self.process.stdout], [], [], within)[0]:
            self.process.kill()
        line = self.process.stdout.readline()
        return dict(json.loads(line)) if line else {}
