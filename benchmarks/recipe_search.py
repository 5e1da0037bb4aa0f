"""Which automatic choices of the plan could be better? One setting changed at a time, on the tasks of recipe.py.

python benchmarks/recipe_search.py [--only TASK ...] [--variants NAME ...] [--seeds N] [--hours H]

Goes cell by cell and continues where it stopped. Writes results/recipe_search.json and results/recipe_search.md.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from recipe import HERE, Recipe, filled
from recipe_tables import of, shown, values
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


def variant(settings: dict[str, Any]) -> Recipe:
    return Recipe("", lambda rows: settings, dev=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", default=[], choices=TASKS, metavar="TASK")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--hours", type=float, default=10.0, help="begin no cell after so many")
    parser.set_defaults(model=MODEL)
    given = parser.parse_args()
    tasks = [t for t in TASKS.values() if not t.aside and (not given.only or t.name in given.only)]
    recipes = {name.replace(" ", "_"): variant(VARIANTS[name]) for name in given.variants}
    cells = filled("recipe_search.json", tasks, recipes, given)
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
        scores = {t: values(cells, MODEL, t, name) for t in tasks}
        seconds = {t: statistics.mean(c["seconds"] for c in of(cells, MODEL, t, name)) for t in tasks}
        cols = [f"{shown(scores[t])} ({seconds[t]:.0f})" for t in tasks]
        mean = statistics.mean(statistics.mean(scores[t]) for t in tasks)
        lines.append(f"| {name} | {' | '.join(cols)} | {mean:.1f} ({sum(seconds.values()):.0f}) |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
