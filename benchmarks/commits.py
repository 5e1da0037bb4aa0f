"""Is a step as fast as it was? The training step of two commits, in turn, step by step.

python benchmarks/commits.py COMMIT COMMIT [--rounds 9] [--only NAME ...]      # `.` is the working tree
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from peers import Bench
from subject import Subject
from workloads import WORKLOADS, Workload

from tunewright.system import machine

ROOT = Path(__file__).parent.parent
DEFAULT = ["classify-200", "tools-1500", "diverse", "equal"]


@contextlib.contextmanager
def code_of(commit: str, folder: Path) -> Iterator[Path]:
    """The code of a commit in a folder of its own."""
    if commit == ".":
        yield ROOT
        return
    subprocess.run(["git", "worktree", "add", "--detach", "-q", str(folder), commit], cwd=ROOT, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(folder)], cwd=ROOT, check=True)


def ratios(bench: Bench, workload: Workload, codes: list[Path], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of the second commit's step over the first's, per round, after one to warm up; peak memory of both."""
    subjects = []
    for code, name in zip(codes, ("first", "second"), strict=True):
        os.environ["PYTHONPATH"] = str(code)
        setup = bench.setup(workload, name, dtype="bfloat16", layout="shared")
        subjects.append(Subject(Path(sys.executable), code / "benchmarks" / "ours.py", setup))
    seconds: dict[str, list[float]] = {s.name: [] for s in subjects}
    losses: dict[str, list[float]] = {s.name: [] for s in subjects}
    for i in range(rounds + 1):
        for subject in subjects if i % 2 == 0 else subjects[::-1]:
            taken = subject.step()
            seconds[subject.name].append(taken["seconds"])
            losses[subject.name].append(taken["loss"])
    memory = [s.end()["peak_gb"] for s in subjects]
    assert losses["first"] == losses["second"], f"other losses: {losses}"
    return [b / a for a, b in zip(seconds["first"], seconds["second"], strict=True)][1:], memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs=2, metavar="COMMIT")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="*", default=DEFAULT, choices=list(WORKLOADS), metavar="NAME")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tunewright-bench-"))
    bench = Bench(folder, machine.cores(), lambda line: print(line, file=sys.stderr, flush=True))
    print("| a step of | second / first, median (range) | losses | peak memory, GB |\n|---|---|---|---|")
    with code_of(asked.commits[0], folder / "a") as first, code_of(asked.commits[1], folder / "b") as second:
        for name in asked.only:
            r, memory = ratios(bench, WORKLOADS[name], [first, second], asked.rounds)
            print(
                f"| {WORKLOADS[name].description} | {statistics.median(r):.3f} ({min(r):.3f} to {max(r):.3f}) | equal "
                f"| {memory[0]:.2f}, {memory[1]:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
