"""The tables of results/*.md, from the numbers in results/*.json."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from workloads import WORKLOADS

OURS = "tunewright"


def ratios(seconds: dict[str, list[float | None]]) -> list[float]:
    """The speedup of each round: seconds of the best peer (by its median over all rounds) over ours."""
    medians = {name: statistics.median(s) for name, given in seconds.items() if (s := [x for x in given if x])}
    best = min((n for n in medians if n != OURS), key=medians.__getitem__, default=None)
    if best is None:
        return []
    return [theirs / ours for theirs, ours in zip(seconds[best], seconds[OURS], strict=True) if theirs and ours]


def times(values: list[float]) -> str:
    """Speedups in words: the median of the rounds and their range."""
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
        f"`{result['command']}`: {machine['threads']} threads of {machine['processor']}, "
        f"matrix products at {peak:.0f} GFLOP/s, "
        f"Python {result['python']}, {', '.join(f'{k} {v}' for k, v in sorted(versions.items()))}; "
        f"{result['minutes']} minutes.",
        "",
        "Speedup over the best setting of the best peer (median, and range of rounds); seconds per step are medians.",
        "",
        "| workload | speedup | target | ours, s | peers, s | ours, rows/s | tokens/s of the rows | tokens/s computed "
        "| of matmul peak | peak memory, ours / peer |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["workloads"]:
        seconds = {
            n: statistics.median(s) if (s := [x for x in given if x]) else None for n, given in row["seconds"].items()
        }
        ours, values = seconds[OURS], ratios(row["seconds"])
        theirs = ", ".join(f"{n} {s:.1f}" if s else f"{n} died" for n, s in seconds.items() if n != OURS)
        lines.append(
            f"| {description(row)}; {row['batch']} rows per step | {times(values)} | {row['target']:g} | {ours:.2f} | "
            f"{theirs} | {row['batch'] / ours:.2f} "
            f"| {row['tokens'] / ours:.0f} | {row['computed'] / ours:.0f} | {row['flops'] / ours / peak / 1e9:.0%} "
            f"| {memory(row)} |"
        )
    if part := result.get("settings"):
        title = "The peers' settings on classify-200 (one step, after a small one as warm-up)"
        lines += ["", f"{title}:", "", "| setting | s per step | peak memory |", "|---|---|---|"]
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
    lines = [f"`{result['command']}`: seconds per step are medians of the rounds; each line includes all above it."]
    for name, part in result["workloads"].items():
        lines += [
            "",
            f"On {name}:",
            "",
            "| | s per step | speedup over the line above | peak memory |",
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
        "instruction of 200 tokens; transformers' `generate` at its best batch size of 16, 32 and 64.",
        "",
        "| | speedup (median and range of the rounds) | ours, s in all | transformers, s in all | equal answers |",
        "|---|---|---|---|---|",
    ]
    for task, r in result["tasks"].items():
        same = f"{r['same']:.0%}" if r["same"] is not None else ""
        lines.append(
            f"| {task} | {times(r['ratio'])} | {sum(r['seconds']['tunewright']):.0f} "
            f"| {sum(r['seconds']['transformers']):.0f} (batch {r['batch']}) | {same} |"
        )
    return "\n".join(lines) + "\n"


SETTINGS_IN_WORDS = {  # of benchmarks/peers.py
    "TRL bf16 both, small passes": "bf16 weights and autocast, small microbatches",
    "PEFT loop bf16, small passes": "bf16 weights and autocast, small microbatches",
}


def readme_table(peers: dict[str, Any], judging: dict[str, Any]) -> str:
    """The part of the README about speed."""
    threads = peers["machine"]["threads"]
    best = ", or ".join(dict.fromkeys(SETTINGS_IN_WORDS.get(name, name) for name in peers["best"].values()))
    lines = [
        f"`make bench`, SmolLM2-135M, LoRA rank 16, {threads} CPU threads. Speedup over the faster of TRL and a plain "
        f"PEFT loop, each at the best setting found for it ({best}). The targets were set before these settings were "
        "found. Lengths are in tokens:",
        "",
        "| one step of | speedup (range over rounds) | target | of matmul peak | peak memory, ours / peer |",
        "|---|---|---|---|---|",
    ]
    for row in peers["workloads"]:
        values, ours = ratios(row["seconds"]), statistics.median(row["seconds"][OURS])
        fraction = row["flops"] / ours / peers["machine"]["gemm_gflops"] / 1e9
        lines.append(
            f"| {description(row)}; {row['batch']} rows | {times(values)} | {row['target']:g} | {fraction:.0%} "
            f"| {memory(row)} |"
        )
    names = ("label scoring", "greedy decoding of 60 tokens")
    for name, r, target in zip(names, judging["tasks"].values(), (8, 3), strict=True):
        lines.append(
            f"| evaluating 500 rows, {name}; over transformers' `generate` | {times(r['ratio'])} | {target} | | |"
        )
    return "\n".join([*lines, "", *curve_lines(peers["curves"])]) + "\n"


def description(row: dict[str, Any]) -> str:
    return WORKLOADS[row["workload"]].description


def largest_difference(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def mean_difference(a: list[float], b: list[float]) -> float:
    return statistics.mean(abs(x - y) for x, y in zip(a, b, strict=True))


def curves_disagree(curves: dict[str, dict[str, list[float]]] | None) -> str:
    """What is wrong with the loss curves, or "": in float32 all systems must agree; in bfloat16 our curve must be no
    further from the float32 curve than that of a run from another adapter."""
    if not curves:
        return ""
    wide, narrow = curves["float32"], curves["bfloat16"]
    far = [name for name in wide if largest_difference(wide[OURS], wide[name]) > 1e-4]
    spread = max(mean_difference(curve, wide[OURS]) for name, curve in narrow.items() if name.startswith("seed"))
    wrong = [f"the float32 curve of {name} differs from ours by more than 1e-4" for name in far]
    if mean_difference(narrow[OURS], wide[OURS]) > spread:
        wrong.append("our bfloat16 curve is further from our float32 curve than another seed's")
    return "; ".join(wrong)


def curve_lines(curves: dict[str, dict[str, list[float]]]) -> list[str]:
    wide, narrow = curves["float32"], curves["bfloat16"]
    ours = wide[OURS]
    lines = [
        f"Loss curves, {len(ours)} steps from the same adapter on the same rows "
        f"(ours: from {ours[0]:.3f} to {ours[-1]:.3f}):",
        "",
    ]
    for name in ("TRL", "PEFT loop"):
        lines.append(f"- float32, largest difference from {name}: {largest_difference(ours, wide[name]):.1e}")
    for name, curve in narrow.items():
        system = f"tunewright from another initial adapter ({name})" if name.startswith("seed") else name
        mean = mean_difference(curve, ours)
        lines.append(f"- bfloat16, {system}: {mean:.3f} nats from our float32 curve on average")
    return lines


if __name__ == "__main__":
    print(peers_table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
