"""Our step with one optimization after another: packing, head on labelled tokens, fused decoder, shared prefixes.

python benchmarks/ablation.py [--pairs 3] [--only NAME ...]      Writes results/ablation.json and results/ablation.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from peers import HERE, Bench
from tables import ablation_table
from workloads import CURVE, WORKLOADS, Workload

from tunewright.system import machine

# Each variant includes those above it. Passes are small where that is faster, and so that all fit into memory at once.
SMALL = {"capacity": 1024}
VARIANTS: dict[str, dict[str, Any]] = {
    "padded, head on every token": {"layout": "padded", "all_logits": True, "fused": False, **SMALL},
    "packed": {"layout": "packed", "all_logits": True, "fused": False, **SMALL},
    "head on labelled tokens only": {"layout": "packed", "fused": False, **SMALL},
    "fused decoder": {"layout": "packed", **SMALL},
    "shared prefixes": {"layout": "shared"},
}


def ablation(bench: Bench, workload: Workload, pairs: int) -> list[dict[str, Any]]:
    """Rounds of one step per variant, in alternating order, after one step as warm-up."""
    subjects = [bench.ours(workload, name, **more) for name, more in VARIANTS.items()]
    taken: dict[str, list[float]] = {s.name: [] for s in subjects}
    for number in range(pairs + 1):
        for subject in subjects if number % 2 == 0 else subjects[::-1]:
            seconds = subject.step()["seconds"]
            if number:
                taken[subject.name].append(seconds)
    return [{"name": s.name, "seconds": taken[s.name], "peak_gb": s.end()["peak_gb"]} for s in subjects]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--pairs", type=int, default=3, help="rounds of one step per variant")
    parser.add_argument(
        "--only", nargs="*", default=["classify-200", "diverse"], choices=list(WORKLOADS), metavar="NAME"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results" / "ablation.json")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tunewright-bench-"))
    bench = Bench(folder, machine.cores(), print)
    bench.once(bench.ours(CURVE, "start", save_adapter=str(folder / "adapter")))
    result: dict[str, Any] = {
        "command": f"python benchmarks/ablation.py {' '.join(sys.argv[1:])}".strip(),
        "workloads": {},
    }
    for name in asked.only:
        result["workloads"][name] = ablation(bench, WORKLOADS[name], asked.pairs)
        medians = {m["name"]: round(statistics.median(m["seconds"]), 2) for m in result["workloads"][name]}
        print(f"{name}: {medians}", file=sys.stderr, flush=True)
    asked.out.write_text(json.dumps(result, indent=1))
    text = ablation_table(result)
    asked.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
