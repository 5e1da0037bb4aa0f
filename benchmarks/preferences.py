"""Which learning rate suits each preference method? Pairs of definitions, one epoch for each cell.

python examples/preferences/make_data.py
python benchmarks/preferences.py [--methods dpo simpo ...] [--factors 0.05 0.125 ...] [--pairs 200]

A factor multiplies the automatic rate of supervised fine-tuning. Cells that are done are not repeated. Writes
results/preferences.json and .md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tunewright.core.config import PREFERENCE
from tunewright.train.recipe import RATES

HERE = Path(__file__).parent
PAIRS = HERE.parent / "examples" / "preferences" / "data" / "preferences.jsonl"
OUT = HERE / "results" / "preferences.json"
DEV = 64


def cell(method: str, factor: float, pairs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder, lines = Path(name), PAIRS.read_text(encoding="utf-8").splitlines(keepends=True)
        for side, part in (("train", lines[DEV + 20 :][:pairs]), ("dev", lines[:DEV]), ("test", lines[DEV : DEV + 20])):
            (folder / f"{side}.jsonl").write_text("".join(part), encoding="utf-8")
        words = ["train.jsonl", "data.dev=dev.jsonl", "data.test=test.jsonl", f"train.method={method}"]
        words += [
            f"train.lr_multiplier={factor / RATES[method]:g}",
            "train.epochs=1",
            "train.batch_size=8",
            "--name",
            "r",
        ]
        command = [sys.executable, "-m", "tunewright", "train", *words, "--name", "r"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            return {"failed": done.stderr.strip().splitlines()[-1][:200]}
        steps = [json.loads(line) for line in (folder / "runs" / "r" / "metrics.jsonl").read_text().splitlines()]
    dev = [s["dev_loss"] for s in steps if s.get("dev_loss") is not None]
    late = [s["metrics"] for s in steps if s.get("metrics")][-8:]
    means = {name: round(float(np.mean([m[name] for m in late])), 3) for name in late[0]}
    return {"dev_before": round(dev[0], 4), "dev_after": round(dev[-1], 4), "dev_best": round(min(dev), 4), **means}


def table(cells: dict[str, dict[str, Any]]) -> str:
    lines = [
        "# Rates of preference methods\n",
        "`python benchmarks/preferences.py`: one epoch of 200 pairs of definitions (examples/preferences),\n"
        "SmolLM2-135M, batches of 8. Rate: over the automatic rate of supervised fine-tuning. Rewards, accuracy and\n"
        "the chosen answer's nll per token: means of the last eight steps, each before its update.\n",
        "| method | rate | dev loss before | after | accuracy | reward of the chosen | of the rejected | nll |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, c in sorted(cells.items()):
        method, factor = key.split()
        if "failed" in c:
            lines.append(f"| {method} | {factor} | {c['failed']} | | | | | |")
            continue
        rewards = f"{c['reward_chosen']:+.2f} | {c['reward_rejected']:+.2f}"
        losses = f"{c['dev_before']:.3f} | {c['dev_after']:.3f}"
        lines.append(f"| {method} | {factor} | {losses} | {c['accuracy']:.2f} | {rewards} | {c['nll']:.2f} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--methods", nargs="*", default=list(PREFERENCE), choices=PREFERENCE)
    parser.add_argument("--factors", nargs="*", type=float, default=[0.05, 0.125, 0.375])
    parser.add_argument("--pairs", type=int, default=200)
    options = parser.parse_args()
    cells = json.loads(OUT.read_text()) if OUT.exists() else {}
    for method in options.methods:
        for factor in options.factors:
            key = f"{method} {factor:g}"
            if key not in cells:
                cells[key] = cell(method, factor, options.pairs)
                print(key, cells[key], flush=True)
                OUT.write_text(json.dumps(cells, indent=1) + "\n")
                OUT.with_suffix(".md").write_text(table(cells), encoding="utf-8")
    print(table(cells))


if __name__ == "__main__":
    main()
