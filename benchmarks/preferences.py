"""Which learning rate suits each method that learns from pairs? One epoch for each cell: a task, a method, a rate.

for e in preferences addresses jargon; do python examples/$e/make_data.py; done
python benchmarks/preferences.py [--tasks ...] [--methods ...] [--factors ...] [--pairs 200] [--hours 8]

A factor multiplies the automatic rate of supervised fine-tuning. Cells that are done are not repeated: what was stopped
continues where it stopped. With ``--hours``, no cell is begun that would probably end later. Writes
results/preferences.json and .md after every cell.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tunewright.core.config import PAIRED, RATED
from tunewright.train.recipe import RATES

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
OUT = HERE / "results" / "preferences.json"
DEV, TEST = 64, 20
MEASURED = ("accuracy", "reward_chosen", "reward_rejected", "reward_desirable", "reward_undesirable", "nll")
Row = dict[str, Any]


def _lines(name: str) -> list[Row]:
    return [json.loads(line) for line in (EXAMPLES / name).read_text(encoding="utf-8").splitlines()]


def definitions() -> list[Row]:
    """Style: the Devil's Dictionary is chosen, WordNet rejected."""
    return _lines("preferences/data/preferences.jsonl")


def addresses() -> list[Row]:
    """Exactness: of the parts of an address, the rejected answer lacks the last."""
    rows = []
    for row in _lines("addresses/data/addresses.jsonl"):
        *prompt, answer = row["messages"]
        parts = json.loads(answer["content"])
        if len(parts) > 1:
            fewer = dict(list(parts.items())[:-1])
            rows.append({"prompt": prompt, "chosen": json.dumps(parts), "rejected": json.dumps(fewer)})
    return rows


def jargon() -> list[Row]:
    """Topic: the rejected answer explains the next word."""
    rows = _lines("jargon/data/jargon.jsonl")
    pairs = zip(rows, [*rows[1:], rows[0]], strict=True)
    return [{"prompt": a["prompt"], "chosen": a["completion"], "rejected": b["completion"]} for a, b in pairs]


TASKS: dict[str, Callable[[], list[Row]]] = {"definitions": definitions, "addresses": addresses, "jargon": jargon}


def cell(task: str, method: str, factor: float, pairs: int) -> dict[str, Any] | None:
    """None if it was stopped, or failed for a reason other than its rate."""
    every = TASKS[task]()
    order = np.random.default_rng(0).permutation(len(every))
    rows = [json.dumps(every[i], ensure_ascii=False) + "\n" for i in order[: DEV + TEST + pairs]]
    parts = {"dev": rows[:DEV], "test": rows[DEV : DEV + TEST], "train": rows[DEV + TEST :]}
    with tempfile.TemporaryDirectory() as name:
        folder, started = Path(name), time.monotonic()
        for side, part in parts.items():
            (folder / f"{side}.jsonl").write_text("".join(part), encoding="utf-8")
        words = ["train.jsonl", "data.dev=dev.jsonl", "data.test=test.jsonl", "data.leaks=drop", "data.too_long=drop"]
        words += [f"train.method={method}", f"train.lr_multiplier={factor / RATES[method]:g}", "train.epochs=1"]
        words += ["train.batch_size=8", "prove.evidence=plain", "--name", "r"]
        command = [sys.executable, "-m", "tunewright", "train", *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
            print(task, method, factor, last, flush=True)
            return {"failed": last} if "TRAIN_NOT_FINITE" in done.stderr else None
        steps = [json.loads(line) for line in (folder / "runs" / "r" / "metrics.jsonl").read_text().splitlines()]
    dev = [s["dev_loss"] for s in steps if s.get("dev_loss") is not None]
    late = [s["metrics"] for s in steps if s.get("metrics")][-8:]
    means = {name: round(float(np.mean([m[name] for m in late])), 3) for name in MEASURED if name in late[0]}
    losses = {"dev_before": round(dev[0], 4), "dev_after": round(dev[-1], 4), "dev_best": round(min(dev), 4)}
    return {**losses, **means, "seconds": round(time.monotonic() - started)}


def table(cells: dict[str, dict[str, Any]]) -> str:
    lines = [
        "# Rates of methods that learn from pairs\n",
        "`python benchmarks/preferences.py`: one epoch of so many pairs, SmolLM2-135M, batches of 8. Rate: over the\n"
        "automatic rate of supervised fine-tuning. Rewards, accuracy and the chosen answer's nll per token: means of\n"
        "the last eight steps, each before its update. Losses of different methods cannot be compared.\n",
        "| task | method | rate | pairs | dev loss before | after | best | accuracy | reward of the chosen | of the "
        "rejected | nll |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key, c in sorted(cells.items()):
        first = " | ".join(key.split())
        if "failed" in c:
            lines.append(f"| {first} | {c['failed']} | | | | | | |")
            continue
        chosen = c.get("reward_chosen", c.get("reward_desirable"))
        rejected = c.get("reward_rejected", c.get("reward_undesirable"))
        numbers = [c["dev_before"], c["dev_after"], c["dev_best"], c.get("accuracy"), chosen, rejected, c.get("nll")]
        shown = ["" if n is None else f"{n:.3f}" for n in numbers]
        lines.append(f"| {first} | {' | '.join(shown)} |")
    return "\n".join([*lines, ""])


def write(path: Path, text: str) -> None:
    """At once, so that nothing that was measured is lost when the benchmark is stopped."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def fits(begun: float, hours: float | None, cells: dict[str, dict[str, Any]]) -> bool:
    """Whether another cell probably ends within the hours: it may take as long as the longest so far."""
    longest = max((c.get("seconds", 0) for c in cells.values()), default=0)
    return hours is None or time.monotonic() - begun + longest <= 3600 * hours


def wanted(options: argparse.Namespace) -> dict[str, tuple[str, str, float, int]]:
    """The cells by name. All tasks of a method and rate follow one another, so that what is there after some hours can
    be compared."""
    cells = [(t, m, f, options.pairs) for m in options.methods for f in options.factors for t in options.tasks]
    return {
        f"{task} {method} {factor:g} {pairs}": (task, method, factor, pairs) for task, method, factor, pairs in cells
    }


def main() -> None:
    methods = (*PAIRED, *RATED)
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--methods", nargs="*", default=list(methods), choices=methods)
    parser.add_argument("--factors", nargs="*", type=float, default=[0.05, 0.125, 0.375])
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--hours", type=float, help="begin no cell that would probably end later")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    cells: dict[str, dict[str, Any]] = json.loads(options.out.read_text()) if options.out.exists() else {}
    begun = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the training that runs ends, too
    left = {name: arguments for name, arguments in wanted(options).items() if name not in cells}
    for number, (name, arguments) in enumerate(left.items()):
        if not fits(begun, options.hours, cells):
            print(f"{len(left) - number} cells are left; the same command continues")
            break
        done = cell(*arguments)
        if done is None:
            continue
        cells[name] = done
        print(f"{number + 1} of {len(left)}: {name} {done}", flush=True)
        write(options.out, json.dumps(cells, indent=1) + "\n")
        write(options.out.with_suffix(".md"), table(cells))
    print(table(cells))


if __name__ == "__main__":
    main()
