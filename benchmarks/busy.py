"""A training step and decoding on a machine that is not idle: beside busy processes, another torch process, an
installer and a compiler, and with little memory left.

    python benchmarks/busy.py [--steps 10] [--rounds 2] [--only NAME ...] [--ways NAME ...]

"training" and "decoding" are what a run does (`tunewright.system.crowding`). "one thread" never waits for another, so
it shows what the part of the cores that the scheduler gives to this process allows. Times are divided by the median of
the undisturbed steps of the same round, of all threads.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from subject import Subject
from workloads import Workload, rows

from tunewright.system import machine

HERE = Path(__file__).parent
# Eight rows like those of the demo: some thirty common tokens, then eighty of their own, two thirds of them targets.
WORKLOAD = Workload("addresses", "8 rows of 110 tokens", 30, (80, 80), 55, 8, 0.0)
SPIN = "while True: pass"
TORCH = "import torch\na = torch.randn(1500, 1500)\nwhile True: a = torch.tanh(a @ a / 40)"
INSTALL = """
import itertools, pathlib, shutil, sysconfig, tempfile
source = pathlib.Path(sysconfig.get_paths()["purelib"])
for n in itertools.count():
    to = pathlib.Path(tempfile.mkdtemp())
    for package in ("torch", "transformers", "scipy"):
        shutil.copytree(source / package, to / package)
    shutil.rmtree(to)
"""
COMPILE = """
import itertools, pathlib, subprocess, tempfile
line = "int f{0}(int x) {{ int y = x; for (int j = 0; j < {0}; j++) y = y * {1} + j; return y; }}"
lines = [line.format(i, i + 3) for i in range(3000)]
with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "a.c"
    file.write_text("\\n".join(lines))
    while True: subprocess.run(["cc", "-O2", "-c", str(file), "-o", str(file.with_suffix(".o"))], check=True)
"""
# Takes all free memory but a gigabyte and keeps writing to it, so that the kernel looks for pages to take back.
MEMORY = """
import mmap
free = {l.split(":")[0]: int(l.split()[1]) for l in open("/proc/meminfo")}["MemAvailable"] * 1024
size = max(1 << 30, free - (1 << 30))
held = mmap.mmap(-1, size)
while True:
    for at in range(0, size, 4096): held[at] = (held[at] + 1) % 256
"""
NEIGHBOURS: dict[str, list[str]] = {
    "one busy process": [SPIN],
    "two busy processes": [SPIN, SPIN],
    "another torch process (2 threads)": [TORCH],
    "an installer and a compiler": [INSTALL, COMPILE],
    "an installer, a compiler and a torch process": [INSTALL, COMPILE, TORCH],
    "all free memory but 1 GB in use": [MEMORY],
}


@contextlib.contextmanager
def beside(scripts: list[str]) -> Iterator[None]:
    """Run the scripts, each in a process group of its own, and end them afterwards."""
    scratch = tempfile.mkdtemp(prefix="tunewright-busy-")
    environment = {**os.environ, "TMPDIR": scratch}
    running = [subprocess.Popen([sys.executable, "-c", s], env=environment, start_new_session=True) for s in scripts]
    try:
        time.sleep(3.0 if scripts else 0.0)
        yield
    finally:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(scratch, ignore_errors=True)


def setup(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    from transformers import AutoTokenizer

    from tunewright.model import loading

    model = loading.resolve("smollm2-135m")
    file = folder / "rows.json"
    if not file.exists():
        file.write_text(json.dumps(rows(WORKLOAD, 64, AutoTokenizer.from_pretrained(model))))
    base = {"name": name, "folder": str(folder), "rows": str(file), "model": str(model), "batch": WORKLOAD.batch}
    return {**base, "lr": 1e-4, "dtype": "bfloat16", "layout": "shared", **more}


def taken(subject: Subject, steps: int) -> Iterator[float]:
    """Seconds of each step; no further step after a minute."""
    end = time.monotonic() + 60
    for _ in range(steps):
        yield subject.step().get("seconds", float("nan"))
        if time.monotonic() > end:
            return


Ratios = dict[str, list[float]]


def measure(start: Callable[[int], Subject], steps: int, rounds: int, only: list[str]) -> tuple[Ratios, Ratios]:
    """Seconds of each step over the undisturbed median of its round, by neighbours: of all threads, and of one."""
    ratios: tuple[Ratios, Ratios] = ({}, {})
    subjects = (start(machine.cores()), start(1))
    for subject in subjects:
        subject.step()
    for _ in range(rounds):
        middle = 0.0
        for name in ("nothing", *only):
            with beside(NEIGHBOURS.get(name, [])):
                for subject, its in zip(subjects, ratios, strict=True):
                    seconds = list(taken(subject, steps))
                    middle = middle or statistics.median(seconds)
                    its.setdefault(name, []).extend(s / middle for s in seconds)
            subjects[0].step()
            subjects[0].step()
    for subject in subjects:
        subject.end()
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(NEIGHBOURS), choices=list(NEIGHBOURS))
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tunewright-busy-") as scratch:
        folder = Path(scratch)
        results: dict[str, Ratios] = {}
        for way in asked.ways:

            def start(threads: int, way: str = way) -> Subject:
                given = setup(folder, f"{way}-{threads}", **WAYS[way], threads=threads)
                return Subject(Path(sys.executable), HERE / "ours.py", given)

            results[way], results[f"{way}, one thread"] = measure(start, asked.steps, asked.rounds, asked.only)
    print("| beside | " + " | ".join(results) + " |\n" + "|---" * (len(results) + 1) + "|")
    for name in ("nothing", *asked.only):
        cells = [f"{statistics.median(r[name]):.2f} (worst {max(r[name]):.2f})" for r in results.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")


WAYS: dict[str, dict[str, Any]] = {
    "training": {"adaptive": True, "give_way": True},
    "training, the planned threads": {"give_way": True},
    "decoding": {"decode": True, "give_way": True},
    "training, no remedy": {},
    "decoding, no remedy": {"decode": True},
}

if __name__ == "__main__":
    main()
