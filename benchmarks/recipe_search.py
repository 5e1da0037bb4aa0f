"""Which automatic choices of the plan could be better? One setting changed at a time, on the tasks of recipe.py.

python benchmarks/recipe_search.py [--only TASK ...] [--variants NAME ...] [--seeds N] [--hours H]

Goes cell by cell and continues where it stopped. Writes results/recipe_search.json and results/recipe_search.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

from recipe import HERE, ROOT, Bench, Recipe
from recipe_tables import normalised, of, shown
from recipe_tasks import TASKS

MODEL = "smollm2-135m"
VARIANTS: dict[str, dict[str, Any]] = {
    "now": {},
    "batch 4": {"train.batch_size": 4},
    "batch 2": {"train.batch_size": 2},
    "linear": {"train.schedule": "linear"},
    "rank 8": {"adapter.rank": 8, "adapter.alpha": 16},
    "rank 32": {"adapter.rank": 32, "adapter.alpha": 64},
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", default=[], choices=TASKS, metavar="TASK")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--hours", type=float, default=10.0, help="begin no cell after so many")
    given = parser.parse_args()
    tasks = [t for t in TASKS.values() if not t.aside and (not given.only or t.name in given.only)]
    file, end = HERE / "results" / "recipe_search.json", time.monotonic() + 3600 * given.hours
    cells: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    for seed in range(given.seeds):
        for task in tasks:
            bench: Bench | None = None
            for name in ["base", *given.variants]:
                key = f"{MODEL} {task.name} {name.replace(' ', '_')} {seed}"
                if key in cells or time.monotonic() > end or (name == "base" and seed > 0):
                    continue
                bench = bench or Bench(task, MODEL, ROOT / MODEL)
                settings = VARIANTS.get(name, {})
                cells[key] = (
                    bench.base() if name == "base" else bench.cell(Recipe("", lambda n, s=settings: s, dev=True), seed)
                )
                print(key, json.dumps({k: v for k, v in cells[key].items() if k != "curve"}), flush=True)
                file.write_text(json.dumps(cells, indent=0) + "\n", encoding="utf-8")
    (HERE / "results" / "recipe_search.md").write_text(text(cells), encoding="utf-8")


def text(cells: dict[str, dict[str, Any]]) -> str:
    """Scores and seconds of each variant, and their means over the tasks that all variants have."""
    names = list(dict.fromkeys(key.split()[2] for key in cells if " base " not in key))
    tasks = [t for t in TASKS if of(cells, MODEL, t, "base") and all(of(cells, MODEL, t, n) for n in names)]
    lines = [
        "# Automatic choices, one changed at a time\n",
        "`python benchmarks/recipe_search.py`. Normalised scores as in recipe.md; in brackets seconds of training.\n",
        f"| variant | {' | '.join(tasks)} | mean |",
        f"|---|{'---|' * (len(tasks) + 1)}",
    ]
    for name in names:
        scores = {t: _scores(cells, t, name) for t in tasks}
        seconds = {t: statistics.mean(c["seconds"] for c in of(cells, MODEL, t, name)) for t in tasks}
        cols = [f"{shown(scores[t])} ({seconds[t]:.0f})" for t in tasks]
        mean = statistics.mean(statistics.mean(scores[t]) for t in tasks)
        lines.append(f"| {name} | {' | '.join(cols)} | {mean:.1f} ({sum(seconds.values()):.0f}) |")
    return "\n".join([*lines, ""])


def _scores(cells: dict[str, dict[str, Any]], task: str, name: str) -> list[float]:
    (base,) = of(cells, MODEL, task, "base")
    return [normalised(cell, base) for cell in of(cells, MODEL, task, name)]


if __name__ == "__main__":
    main()
