"""The tables of results/*.md, from the numbers of results/*.json."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

OURS = "tunewright"


def ratios(seconds: dict[str, list[float | None]]) -> list[float]:
    """For each round, how many times longer the best peer of all rounds took than we did."""
    medians = {name: statistics.median(s) for name, given in seconds.items() if (s := [x for x in given if x])}
    best = min((n for n in medians if n != OURS), key=medians.__getitem__, default=None)
    if best is None:
        return []
    return [theirs / ours for theirs, ours in zip(seconds[best], seconds[OURS], strict=True) if theirs and ours]


def times(values: list[float]) -> str:
    """How many times as fast: the median of the rounds and their range."""
    return (
        f"**{statistics.median(values):.1f}** ({min(values):.1f} to {max(values):.1f})" if values else "the peers died"
    )


def memory(row: dict[str, Any]) -> str:
    ours = row["peak_gb"][OURS]
    theirs = [p for name, p in row["peak_gb"].items() if name != OURS and p]
    return f"{ours:.1f} / {min(theirs):.1f} GB = {ours / min(theirs):.2f}" if theirs else f"{ours:.1f} GB / died"


def peers_table(result: dict[str, Any]) -> str:
    machine, peak = result["machine"], result["machine"]["gemm_gflops"]
    versions: dict[str, str] = {}
    for row in result["workloads"]:
        for values in row["versions"].values():
            versions |= values
    lines = [
        f"`{result['command']}`: {machine['threads']} threads of {machine['processor']}, products at {peak:.0f} "
        "GFLOP/s, "
        f"Python {result['python']}, {', '.join(f'{k} {v}' for k, v in sorted(versions.items()))}; "
        f"{result['minutes']} minutes.",
        "",
        "Times as fast as the best setting of the best peer (median of the rounds, and their range); seconds a step "
        "are medians.",
        "",
        "| workload | times as fast | wanted | ours, s | peers, s | ours, rows/s | tokens/s of the rows | tokens/s "
        "computed | of the product peak | memory, ours / peer |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["workloads"]:
        seconds = {
            n: statistics.median(s) if (s := [x for x in given if x]) else None for n, given in row["seconds"].items()
        }
        ours, values = seconds[OURS], ratios(row["seconds"])
        theirs = ", ".join(f"{n} {s:.1f}" if s else f"{n} died" for n, s in seconds.items() if n != OURS)
        lines.append(
            f"| {row['says']}; {row['batch']} rows a step | {times(values)} | {row['target']:g} | {ours:.2f} | "
            f"{theirs} | {row['batch'] / ours:.2f} "
            f"| {row['tokens'] / ours:.0f} | {row['computed'] / ours:.0f} | {row['flops'] / ours / peak / 1e9:.0%} "
            f"| {memory(row)} |"
        )
    if part := result.get("settings"):
        title = "The peers' settings on classify-200 (one step after a small one to warm up)"
        lines += ["", f"{title}:", "", "| setting | s a step | peak memory |", "|---|---|---|"]
        lines += [
            f"| {m['name']} | {m['seconds']:.1f} | {m['peak_gb']:.1f} GB |"
            if m["seconds"]
            else f"| {m['name']} | died | |"
            for m in part
        ]
    if "curves" in result:
        lines += ["", *curve_lines(result["curves"])]
    return "\n".join(lines) + "\n"


def ablation_table(result: dict[str, Any]) -> str:
    lines = [f"`{result['command']}`: seconds a step are medians of the rounds; each line has all above it."]
    for name, part in result["workloads"].items():
        lines += [
            "",
            f"On {name}:",
            "",
            "| | s a step | times as fast as the line above | peak memory |",
            "|---|---|---|---|",
        ]
        before: list[float] = []
        for m in part:
            gain = times([b / s for b, s in zip(before, m["seconds"], strict=True)]) if before else ""
            lines.append(f"| {m['name']} | {statistics.median(m['seconds']):.2f} | {gain} | {m['peak_gb']:.1f} GB |")
            before = m["seconds"]
    return "\n".join(lines) + "\n"


def judging_table(result: dict[str, Any]) -> str:
    lines = [
        f"`{result['command']}`: SmolLM2-135M in bfloat16, {result['threads']} threads, rows with a shared "
        "instruction of 200 tokens; transformers' `generate` at its best batch of 16, 32 and 64.",
        "",
        "| | times as fast (median of the turns, range) | ours, s for all | transformers, s for all | equal answers |",
        "|---|---|---|---|---|",
    ]
    for task, r in result["tasks"].items():
        same = f"{r['same']:.0%}" if r["same"] is not None else ""
        lines.append(
            f"| {task} | {times(r['ratio'])} | {sum(r['seconds']['tunewright']):.0f} "
            f"| {sum(r['seconds']['transformers']):.0f} (batch {r['batch']}) | {same} |"
        )
    return "\n".join(lines) + "\n"


def readme_table(peers: dict[str, Any], judging: dict[str, Any]) -> str:
    """The part of the README about speed."""
    threads, best = peers["machine"]["threads"], ", ".join(peers["best"].values())
    lines = [
        f"`make bench`, SmolLM2-135M, LoRA rank 16, {threads} CPU threads; against the best setting of the best "
        f"peer ({best}):",
        "",
        "| a step of | times as fast (range of rounds) | wanted | of the product peak | memory, ours / peer |",
        "|---|---|---|---|---|",
    ]
    for row in peers["workloads"]:
        values, ours = ratios(row["seconds"]), statistics.median(row["seconds"][OURS])
        fraction = row["flops"] / ours / peers["machine"]["gemm_gflops"] / 1e9
        lines.append(
            f"| {row['says']}; {row['batch']} rows | {times(values)} | {row['target']:g} | {fraction:.0%} "
            f"| {memory(row)} |"
        )
    for (task, r), wanted in zip(judging["tasks"].items(), (8, 3), strict=True):
        lines.append(
            f"| judging 500 rows, {task}, against transformers' `generate` | {times(r['ratio'])} | {wanted} | | |"
        )
    return "\n".join([*lines, "", *curve_lines(peers["curves"])]) + "\n"


def apart(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def mean_apart(a: list[float], b: list[float]) -> float:
    return statistics.mean(abs(x - y) for x, y in zip(a, b, strict=True))


def curves_disagree(curves: dict[str, dict[str, list[float]]] | None) -> str:
    """What is wrong with the loss curves, or "": in float32 all systems must agree, in bfloat16 ours must lie no
    further from the float32 curve than a run from another adapter does."""
    if not curves:
        return ""
    wide, narrow = curves["float32"], curves["bfloat16"]
    far = [name for name in wide if apart(wide[OURS], wide[name]) > 1e-4]
    spread = max(mean_apart(curve, wide[OURS]) for name, curve in narrow.items() if name.startswith("seed"))
    wrong = [f"the float32 curve of {name} differs from ours by more than 1e-4" for name in far]
    if mean_apart(narrow[OURS], wide[OURS]) > spread:
        wrong.append("our bfloat16 curve lies further from float32 than another seed's")
    return "; ".join(wrong)


def curve_lines(curves: dict[str, dict[str, list[float]]]) -> list[str]:
    wide, narrow = curves["float32"], curves["bfloat16"]
    ours = wide[OURS]
    lines = [
        f"Loss curves, {len(ours)} steps from the same adapter on the same rows (ours: {ours[0]:.3f} to "
        f"{ours[-1]:.3f}):",
        "",
    ]
    for name in ("TRL", "PEFT loop"):
        lines.append(f"- float32, largest difference to {name}: {apart(ours, wide[name]):.1e}")
    for name, curve in narrow.items():
        what = f"tunewright started from another adapter ({name})" if name.startswith("seed") else name
        lines.append(f"- bfloat16, {what}: {mean_apart(curve, ours):.3f} nats from our float32 curve on average")
    return lines


if __name__ == "__main__":
    print(peers_table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
