"""Memory of a process while it trains: as torch and glibc leave it, and with `tunewright.system.heap`.

python benchmarks/memory.py [--steps N]      (five minutes; writes results/memory.md)
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
MODEL, TASK = "smollm2-135m", "docstrings"
WAYS = {
    "oneDNN keeps code for 1,024 shapes of a product": ("1024", False),
    "for 128 shapes": ("128", False),
    "for 128 shapes, and freed memory is returned": ("128", True),
}


def measure(steps: int, shapes: str, bounded: bool) -> None:
    """Prints the GB that this process holds after each step, and the seconds of each token."""
    from tunewright.system import heap

    heap.SHAPES = shapes
    from recipe import ROOT, Bench, Run, make_folder
    from recipe_tasks import TASKS

    from tunewright.train import loop

    if not bounded:
        heap.bounded = lambda kept: kept
    bench = Bench(TASKS[TASK], MODEL, ROOT / MODEL)
    plan = bench.plan({"train.steps": steps})
    seen: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        make_folder(run.checkpoints)
        model = bench.models.untrained(plan)
        training = loop.TrainingInputs(model, plan, bench.inputs.rows["train"], (), run, {})
        loop.train(training, lambda p: seen.append((heap.resident_gb(), p.seconds / p.tokens)))
    print(json.dumps(seen))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--way", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        return measure(given.steps, given.way[0], given.way[1] == "True")
    after = [1, given.steps // 4, given.steps // 2, given.steps]
    lines = [
        "# Memory while training\n",
        f"`python benchmarks/memory.py`: {MODEL} on {TASK}, 8 rows of mixed lengths a step; GB held by the process.\n",
        f"| | {' | '.join(f'after step {n}' for n in after)} | microseconds a token, median |",
        f"|---|{'---|' * (len(after) + 1)}",
    ]
    for name, (shapes, bounded) in WAYS.items():
        command = [sys.executable, __file__, "--steps", str(given.steps), "--way", shapes, str(bounded)]
        seen = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        held = " | ".join(f"{seen[n - 1][0]:.2f}" for n in after)
        lines.append(f"| {name} | {held} | {1e6 * statistics.median(s for _, s in seen):.0f} |")
    text = "\n".join([*lines, ""])
    (HERE / "results" / "memory.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
