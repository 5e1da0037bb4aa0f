"""Which automatic choices of the plan could be better? One setting changed at a time, on the tasks of recipe.py.

python benchmarks/recipe_search.py [--only TASK ...] [--variants NAME ...] [--seeds N] [--hours H]

Goes cell by cell and continues where it stopped. Writes results/recipe_search.json and results/recipe_search.md; the
untrained model and the choices as they are come from results/recipe.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

from recipe import HERE, Recipe, filled
from recipe_tables import OURS, Cells, of, values
from recipe_tasks import TASKS

MODEL = "smollm2-135m"


def epochs(factor: float) -> Callable[[int], dict[str, Any]]:
    """A multiple of the plan's."""
    return lambda rows: {"train.epochs": factor * (4 if rows < 300 else 3 if rows < 1000 else 2)}


def fixed(**settings: Any) -> Callable[[int], dict[str, Any]]:
    return lambda rows: {key.replace("__", "."): value for key, value in settings.items()}


# before: the plan's choices until 2026-11, whose rate was twice 5e-4 * (2000 / width)^0.78 below 150 steps, and 0.0018
# on sections.
VARIANTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "before": fixed(train__lr=0.0026),
    "before+batch_4": fixed(train__lr=0.0026, train__batch_size=4),
    "batch_4": fixed(train__batch_size=4),
    "lr_0.0013": fixed(train__lr=0.0013),
    "lr_0.0008": fixed(train__lr=0.0008),
    "lr_0.0005": fixed(train__lr=0.0005),
    "lr_0.0013+batch_4": fixed(train__lr=0.0013, train__batch_size=4),
    "lr_0.00093": fixed(train__lr=0.00093),
    "lr_0.00093+batch_4": fixed(train__lr=0.00093, train__batch_size=4),
    "lr_0.0013+linear": fixed(train__lr=0.0013, train__schedule="linear"),
    "lr_0.0013+warmup_0.2": fixed(train__lr=0.0013, train__warmup=0.2),
    "epochs_x1.5": epochs(1.5),
    "lora+_4": fixed(adapter__loraplus_lr_ratio=4.0),
    "linear": fixed(train__schedule="linear"),
    "rank_32": fixed(adapter__rank=32, adapter__alpha=64),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", default=[], choices=TASKS, metavar="TASK")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--hours", type=float, default=10.0, help="begin no cell after so many")
    parser.set_defaults(model=MODEL)
    given = parser.parse_args()
    tasks = [t for t in TASKS.values() if not t.aside and (not given.only or t.name in given.only)]
    recipes = {name: Recipe("", VARIANTS[name], dev=True) for name in given.variants}
    cells = filled("recipe_search.json", tasks, recipes, given)
    now = {
        key: cell
        for key, cell in json.loads((HERE / "results" / "recipe.json").read_text()).items()
        if key.split()[2] in ("base", OURS)
    }
    (HERE / "results" / "recipe_search.md").write_text(text(now, cells), encoding="utf-8")


def text(now: Cells, cells: Cells) -> str:
    """Scores and bits per byte of the plan's choices and of each variant, on the tasks that it was tried on."""
    everything, variants = {**now, **cells}, list(dict.fromkeys(key.split()[2] for key in cells))
    tasks = [t for t in TASKS if any(of(cells, MODEL, t, name) for name in variants)]
    lines = [
        "# Automatic choices, one changed at a time\n",
        "`python benchmarks/recipe_search.py`. Normalised scores as in recipe.md (higher is better); in brackets bits",
        "per byte of the reference answers (lower is better). One seed: of 80 rows, a score varies by about 4 points.",
        "before: the plan's choices until 2026-11, with a rate of 0.0026 (on sections 0.0018); tunewright: as now.\n",
        f"| variant | {' | '.join(tasks)} |",
        f"|---|{'---|' * len(tasks)}",
    ]

    def score(task: str, name: str) -> float:
        return statistics.mean(values(everything, MODEL, task, name))

    def bits(task: str, name: str) -> str:
        return f"{statistics.mean(cell['bits'] for cell in of(everything, MODEL, task, name)):.4f}"

    for name in (OURS, *variants):
        tried = [t for t in tasks if of(everything, MODEL, t, name)]
        cols = [f"{score(t, name):.1f} ({bits(t, name)})" if t in tried else "" for t in tasks]
        lines.append(f"| {name} | {' | '.join(cols)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
