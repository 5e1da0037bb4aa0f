"""The tables of results/methods.md and of the README, from the numbers in results/methods.json."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from method_groups import GROUPS
from tables import OURS, largest_difference, memory, ratios, times

MOST_DIFFERENCE = 1e-4


def rows_of(result: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(group, workload, what was measured), in the order of `GROUPS`."""
    for name, group in GROUPS.items():
        for workload in group.workloads:
            if row := result["groups"].get(name, {}).get("workloads", {}).get(workload):
                yield name, workload, row


def table(result: dict[str, Any]) -> str:
    versions = {k: v for _, _, row in rows_of(result) for own in row["versions"].values() for k, v in own.items()}
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    lines = [
        "# Methods\n",
        f"`python benchmarks/methods.py`: {result['machine']}; {libraries}.",
        f"SmolLM2-135M, LoRA of rank 16; ours in {result['dtype']}. Speedup over the peer's best setting below:",
        "median and range of the rounds.\n",
        "| one step of | speedup | target | rounds | ours, s | peer, s | peak memory, ours / peer | GFLOP/s |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(name, workload, row) for name, workload, row in rows_of(result)),
    ]
    for name, stored in result["groups"].items():
        group = GROUPS[name]
        lines += [f"\n{name}, {group.peer}: {group.equal}.\n", "| setting | s per step |", "|---|---|"]
        tried = stored["settings"].items()
        lines += [f"| {s} | {t['why'] if t['seconds'] is None else format(t['seconds'], '.2f')} |" for s, t in tried]
        if group.curve is not None:
            lines += [f"\n{_curve(curve, group.curve.description)}" for curve in stored["curves"].values()]
    return "\n".join([*lines, ""])


def readme_table(result: dict[str, Any]) -> str:
    lines = [
        f"\nOther methods, `python benchmarks/methods.py`: {result['machine']}, {result['dtype']}. Speedup over the "
        "trainers of TRL and transformers, each at the best setting found for it:\n",
        "| one step of | speedup (range over rounds) | target | peak memory, ours / peer |",
        "|---|---|---|---|",
    ]
    for name, workload, row in rows_of(result):
        timed = GROUPS[name].workloads[workload]
        lines.append(f"| {timed.description} | {times(ratios(row['seconds']))} | {timed.target:g} | {memory(row)} |")
    return "\n".join([*lines, ""])


def _row(name: str, workload: str, row: dict[str, Any]) -> str:
    timed, best = GROUPS[name].workloads[workload], row["best"]
    medians = {n: statistics.median(s) if all(s) else None for n, s in row["seconds"].items()}
    ours, theirs = (f"{s:.2f}" if (s := medians[n]) else "died" for n in (OURS, best))
    cells = [
        timed.description,
        times(ratios(row["seconds"])) if medians[OURS] else "ours died",
        f"{timed.target:g}",
        str(row["rounds"]),
        ours,
        f"{theirs} ({best})",
        memory(row) if medians[OURS] else "",
        f"{row['gflops']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _curve(curve: dict[str, Any], description: str) -> str:
    ours, theirs = curve["losses"].values()
    return (
        f"Loss curves of {curve['steps']} steps of {description} in float32, from {ours[0]:.4f} to {ours[-1]:.4f}: "
        f"the largest difference is {largest_difference(ours, theirs):.1e}."
    )


def disagreeing(result: dict[str, Any]) -> list[str]:
    """The groups whose float32 loss curves differ."""
    curves = [(name, c["losses"].values()) for name, s in result["groups"].items() for c in s["curves"].values()]
    return [name for name, (ours, theirs) in curves if largest_difference(ours, theirs) > MOST_DIFFERENCE]
