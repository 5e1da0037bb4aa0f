"""The tables of results/recipe.md, from the cells in results/recipe.json."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from recipe_tasks import Task

Cells = Mapping[str, Mapping[str, Any]]
OURS, ITSELF = "tunewright", "trl-itself"


def normalised(cell: Mapping[str, Any], base: Mapping[str, Any]) -> float:
    """0 to 100: of answers, the metric; of bits, how many of the base model's bits per byte are saved."""
    return 100 * (cell["score"] if cell["score"] is not None else 1 - cell["bits"] / base["bits"])


def of(cells: Cells, model: str, task: str, recipe: str) -> list[Mapping[str, Any]]:
    """The cells of one recipe, by seed."""
    return [cell for key, cell in cells.items() if key.split()[:3] == [model, task, recipe]]


def values(cells: Cells, model: str, task: str, recipe: str) -> list[float]:
    (base,) = of(cells, model, task, "base")
    return [normalised(cell, base) for cell in of(cells, model, task, recipe)]


def shown(numbers: list[float]) -> str:
    """The mean, and the standard deviation of the seeds."""
    if not numbers:
        return ""
    spread = f" ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.1f}{spread}"


def seconds_to(cell: Mapping[str, Any], bits: float) -> float | None:
    """When the curve of a cell reaches ``bits``."""
    return next((seconds for seconds, reached in cell["curve"] if reached <= bits), None)


def _at(cell: Mapping[str, Any], seconds: float, before: float) -> float:
    """Bits per byte after so many seconds; ``before``: those of the base."""
    return next((bits for at, bits in reversed(cell["curve"]) if at <= seconds), before)


def best_peer(cells: Cells, model: str, task: str, recipes: list[str]) -> str | None:
    """The peer with the best mean score."""
    peers = [r for r in recipes if r != OURS and of(cells, model, task, r)]
    return max(peers, key=lambda r: statistics.mean(values(cells, model, task, r)), default=None)


def text(cells: Cells, tasks: Mapping[str, Task], sources: Mapping[str, str]) -> str:
    out = [
        "# Recipes\n",
        "`python benchmarks/recipe.py` (and `--aside` for the last two tasks). Normalised scores on held-out rows: 100",
        "times the task's metric where answers are scored; otherwise the percentage of the base model's bits per byte",
        "of the reference answers that is saved. Mean and standard deviation of the seeds.\n",
        *(f"- {name}: {source}" for name, source in sources.items()),
    ]
    for model in dict.fromkeys(key.split()[0] for key in cells):
        recipes = [name for name in sources if any(key.split()[0] == model and key.split()[2] == name for key in cells)]
        out += [f"\n## {model}\n", _scores(cells, model, tasks, recipes), "", _times(cells, model, tasks, recipes)]
        out += list(_itself(cells, model, tasks))
    minutes = sum(cell["minutes"] for cell in cells.values())
    return "\n".join([*out, f"\n{len(cells)} cells, {minutes / 60:.1f} hours of two cores.", ""])


def _scores(cells: Cells, model: str, tasks: Mapping[str, Task], recipes: list[str]) -> str:
    lines = [f"| task | rows | base | {' | '.join(recipes)} |", f"|---|---|---|{'---|' * len(recipes)}"]
    for name, task in tasks.items():
        if base := of(cells, model, name, "base"):
            cols = [shown(values(cells, model, name, r)) for r in recipes]
            aside = " (kept aside)" if task.aside else ""
            untrained = f"{normalised(base[0], base[0]):.1f}"
            lines.append(f"| {name}: {task.about}{aside} | {task.train} | {untrained} | {' | '.join(cols)} |")
    return "\n".join(lines)


def _itself(cells: Cells, model: str, tasks: Mapping[str, Task]) -> Iterator[str]:
    """TRL itself beside its recipe in our engine, where it was run."""
    for name in tasks:
        for cell in of(cells, model, name, ITSELF):
            for ours in of(cells, model, name, "trl")[:1]:
                pairs = [f"{label} {a} and {b}" for label, a, b in _figures(cell, ours)]
                yield f"\nTRL itself on {name}, and its recipe in our engine: {'; '.join(pairs)}."


def _figures(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    yield from ((label, theirs[key], ours[key]) for label, key in (("steps", "steps"), ("bits per byte", "bits")))
    if theirs["score"] is not None:
        yield "score", f"{100 * theirs['score']:.1f}", f"{100 * ours['score']:.1f}"


def _on_one_machine(cells: Cells, task: str, peer: str) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Cells of a peer's recipe and of ours, by seed, where one kind of machine measured both and did nothing else."""
    seeds = sorted({key.split()[3] for key in cells})
    pairs = [(cells.get(f"{task} {peer} {seed}"), cells.get(f"{task} {OURS} {seed}")) for seed in seeds]
    measured = [(a, b) for a, b in pairs if a is not None and b is not None and not (a.get("busy") or b.get("busy"))]
    return [(a, b) for a, b in measured if a.get("machine") == b.get("machine")]


def _times(cells: Cells, model: str, tasks: Mapping[str, Task], recipes: list[str]) -> str:
    lines = [
        "| task | best peer recipe | its seconds | our seconds | seconds until its final bits per byte are reached "
        "| bits that it has saved at its end | ours at that time |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in tasks:
        best = best_peer(cells, model, name, recipes)
        pairs = _on_one_machine(cells, f"{model} {name}", best) if best else []
        if of(cells, model, name, OURS) and best and not pairs:
            lines.append(f"| {name} | {best} | not measured on one machine | | | | |")
        if pairs and best:
            theirs, ours = zip(*pairs, strict=True)
            bits = statistics.mean(cell["bits"] for cell in theirs)
            reached = [seconds_to(cell, bits) for cell in ours]
            known = [r for r in reached if r is not None]
            when = f"{statistics.mean(known):.0f}" if len(known) == len(reached) else "not reached by all seeds"
            means = [f"{statistics.mean(c['seconds'] for c in of_):.0f}" for of_ in (theirs, ours)]
            (base,) = of(cells, model, name, "base")
            ours_then = statistics.mean(_at(b, a["seconds"], base["bits"]) for a, b in pairs)
            percents = [f"{100 * (1 - b / base['bits']):.1f} %" for b in (bits, ours_then)]
            lines.append(f"| {name} | {best} | {means[0]} | {means[1]} | {when} | {percents[0]} | {percents[1]} |")
    return "\n".join(lines)
