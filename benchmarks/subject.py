"""What a timed process and the one that times it say to each other. Standard library only: peers have their own
environments.

The process gets its setup as the first line on stdin, answers {"ready": true}, and then takes one optimizer step for
each line "step" and answers {"loss", "seconds"}; at "end" it answers its peak memory. So two processes can take turns,
step by step, with neither running while the other is timed.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any


class Wire:
    """The subject's end. Whatever libraries print goes to stderr."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.setup: dict[str, Any] = json.loads(sys.stdin.readline())

    def say(self, **words: Any) -> None:
        print(json.dumps(words), file=self.out, flush=True)

    def wait(self) -> bool:
        """Whether another step is wanted; says goodbye if not."""
        if sys.stdin.readline().strip() == "step":
            return True
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        names = ("torch", "transformers", "peft", "trl", "tunewright")
        results = {d.metadata["Name"].lower() for d in metadata.distributions()}
        self.say(peak_gb=peak / 1e9, versions={n: metadata.version(n) for n in names if n in results})
        return False


def serve(step: Callable[[int], float], wire: Wire) -> None:
    """Take steps 0, 1, ... as they are asked for. ``step`` returns its loss."""
    import time

    wire.say(ready=True)
    number = 0
    while wire.wait():
        start = time.perf_counter()
        loss = step(number)
        wire.say(loss=loss, seconds=time.perf_counter() - start)
        number += 1


class Subject:
    """The timing end: a process that is asked for steps."""

    def __init__(self, python: Path, script: Path, setup: dict[str, Any]) -> None:
        self.name = str(setup["name"])
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
        self._say(json.dumps(setup))
        self.ready = bool(self._hear().get("ready"))

    def step(self) -> dict[str, float]:
        """{"loss", "seconds"}, or {} if the process has died (of memory, most likely)."""
        self._say("step")
        return self._hear()

    def end(self) -> dict[str, Any]:
        """{"peak_gb", "versions"}, or {} if the process died before."""
        self._say("end")
        results = self._hear()
        self.process.wait()
        return results

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        try:
            print(line, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            self.ready = False

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return dict(json.loads(line)) if line else {}
