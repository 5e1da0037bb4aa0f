"""tunewright compared with TRL and with a plain transformers + PEFT loop: the same rows, steps, initial adapter and
schedule, in alternating steps.

python benchmarks/peers.py [--pairs 3] [--only NAME ...] [--skip-curves]      (or: make bench)

Peers have their own environment (benchmarks/.venv, created on the first call). Writes results/peers.json and
results/peers.md; exits with an error if the loss curves disagree.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from subject import Subject, take_turns
from tables import curves_disagree, peers_table
from workloads import CURVE, WORKLOADS, Workload, rendered, rows

from tunewright.system import machine

HERE = Path(__file__).parent
PEERS = HERE / ".venv" / "bin" / "python"
Print = Callable[[str], None]

# Each peer at its defaults and at settings that people report to be fast; the fastest on classify-200 is used for all
# workloads. `micro`: the peer accumulates over passes of at most this many tokens, which wastes less on padding, needs
# less memory, and is faster on a CPU.
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "trl_sft.py": {
        "TRL defaults": {"dtype": "float32"},
        "TRL bf16 weights": {"dtype": "bfloat16", "settings": {"bf16": False, "gradient_checkpointing": False}},
        "TRL bf16 autocast": {"dtype": "float32", "settings": {"bf16": True, "gradient_checkpointing": False}},
        "TRL bf16 both": {"dtype": "bfloat16", "settings": {"bf16": True, "gradient_checkpointing": False}},
        "TRL bf16 both, small passes": {
            "dtype": "bfloat16",
            "micro": 1024,
            "settings": {"bf16": True, "gradient_checkpointing": False},
        },
        "TRL bf16 both, small passes, plain loss": {
            "dtype": "bfloat16",
            "micro": 1024,
            "settings": {"bf16": True, "gradient_checkpointing": False, "loss_type": "nll"},
        },
    },
    "plain_peft.py": {
        "PEFT loop bf16": {"dtype": "bfloat16", "autocast": True},
        "PEFT loop bf16, small passes": {"dtype": "bfloat16", "autocast": True, "micro": 1024},
        "PEFT loop bf16, smaller passes": {"dtype": "bfloat16", "autocast": True, "micro": 512},
    },
}


def environment() -> None:
    if (HERE / ".venv" / "complete").exists():
        return
    subprocess.run([sys.executable, "-m", "venv", str(HERE / ".venv")], check=True)
    pip = [
        str(PEERS),
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "-c",
        str(HERE.parent / "constraints.txt"),
    ]
    subprocess.run([*pip, "torch"], check=True)
    subprocess.run([*pip, "trl", "peft", "transformers", "datasets"], check=True)
    (HERE / ".venv" / "complete").touch()


def gemm_peak() -> float:
    """GFLOP/s of the fastest matrix product: 2048 cubed and the model's shapes, float32 and bfloat16, median of 20."""
    import torch

    best = 0.0
    for dtype in (torch.float32, torch.bfloat16):
        for m, k, n in ((2048, 2048, 2048), (2048, 576, 1536), (2048, 1536, 576), (2048, 576, 576)):
            a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
            times = []
            for _ in range(20):
                start = time.perf_counter()
                a @ b
                times.append(time.perf_counter() - start)
            best = max(best, 2 * m * k * n / statistics.median(times) / 1e9)
    return best


def step_sizes(chosen: list[dict[str, list[int]]]) -> tuple[int, int, int]:
    """(computed tokens, query-key pairs, labelled tokens) of one of our steps."""
    from tunewright.tokens.packing import to_microbatch
    from tunewright.tokens.prefix_tree import pairs

    microbatch = to_microbatch(rendered(chosen), "shared")
    return microbatch.ids_BT.size, pairs(microbatch.segments), len(microbatch.target_N)


def step_flops(tokens: int, pairs: int, labelled: int) -> float:
    """Floating point operations of our LoRA step (forward and backward; SmolLM2-135M, rank 16): 4 per matrix weight and
    computed token, 4 per head weight and labelled token, 6 per adapter weight and computed token, and 12 per layer,
    unit of width and query-key pair."""
    body, head, adapter, layers, width = 106_168_320, 28_311_552, 4_884_480, 30, 576
    return 4.0 * body * tokens + 4.0 * head * labelled + 6.0 * adapter * tokens + 12.0 * layers * width * pairs


class Bench:
    def __init__(self, folder: Path, threads: int, report: Print) -> None:
        from transformers import AutoTokenizer

        from tunewright.model import loading

        self.folder, self.report = folder, report
        self.model = loading.resolve("smollm2-135m")
        self.tokenizer = AutoTokenizer.from_pretrained(self.model)
        self.common = {"model": str(self.model), "threads": threads, "lr": 1e-3, "adapter": str(folder / "adapter")}

    def setup(self, workload: Workload, name: str, **more: Any) -> dict[str, Any]:
        file = self.folder / f"{workload.name}.json"
        if not file.exists():
            file.write_text(json.dumps(rows(workload, max(8 * workload.batch, 64), self.tokenizer)))
        micro = more.pop("micro", None)
        if micro:
            most = max(1, micro // (workload.shared + workload.own[1]))
            more["micro"] = next(m for m in (16, 8, 4, 2, 1) if m <= most and workload.batch % m == 0)
        folder = self.folder / f"{workload.name}-{name}".replace(" ", "-")
        folder.mkdir(exist_ok=True)
        return {**self.common, "name": name, "rows": str(file), "batch": workload.batch, "folder": str(folder), **more}

    def ours(self, workload: Workload, name: str = "tunewright", **more: Any) -> Subject:
        given = {"dtype": "bfloat16", "layout": "shared", **more}
        return Subject(Path(sys.executable), HERE / "ours.py", self.setup(workload, name, **given))

    def peer(self, workload: Workload, script: str, name: str, **more: Any) -> Subject:
        return Subject(PEERS, HERE / script, self.setup(workload, name, **{**SETTINGS[script].get(name, {}), **more}))

    def once(self, subject: Subject, steps: int = 1) -> dict[str, Any]:
        """Take ``steps`` steps; the seconds of the last one, all losses, and peak memory."""
        taken = [subject.step() for _ in range(steps)]
        end = subject.end()
        died = not taken[-1]
        return {
            "name": subject.name,
            "seconds": None if died else taken[-1]["seconds"],
            "losses": [t.get("loss") for t in taken],
            "peak_gb": None if died else end["peak_gb"],
            "versions": end.get("versions", {}),
        }

    def settings(self) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """Results of every setting of every peer on classify-200, and the fastest setting of each peer."""
        kept, best = [], {}
        for script, named in SETTINGS.items():
            measured = []
            for name in named:
                measured.append(self.once(self.peer(WORKLOADS["classify-200"], script, name)))
                self.report(f"  {name}: {measured[-1]['seconds'] or 'died'}")
            kept += measured
            best[script] = min((m for m in measured if m["seconds"]), key=lambda m: m["seconds"])["name"]
        return kept, best

    def side_by_side(self, workload: Workload, best: dict[str, str], pairs: int) -> dict[str, Any]:
        """Rounds of one step per system, in alternating order, so that a slow minute affects all alike."""
        subjects = [self.ours(workload), *(self.peer(workload, script, name) for script, name in best.items())]
        taken, ends = take_turns(subjects, pairs)
        chosen = json.loads((self.folder / f"{workload.name}.json").read_text())[: workload.batch]
        sizes = step_sizes(chosen)
        return {
            "workload": workload.name,
            "says": workload.description,
            "target": workload.target,
            "batch": workload.batch,
            "tokens": sum(len(r["ids"]) for r in chosen),
            "computed": sizes[0],
            "flops": step_flops(*sizes),
            "seconds": {name: [t.get("seconds") for t in steps] for name, steps in taken.items()},
            "losses": {name: [t.get("loss") for t in steps] for name, steps in taken.items()},
            "peak_gb": {name: end.get("peak_gb") for name, end in ends.items()},
            "versions": {name: end.get("versions", {}) for name, end in ends.items()},
        }

    def curves(self, steps: int) -> dict[str, Any]:
        """Losses of ``steps`` steps of each system, in float32 and bfloat16, and of two other seeds in bfloat16."""
        kept: dict[str, dict[str, Any]] = {"float32": {}, "bfloat16": {}}
        for dtype, losses in kept.items():
            losses["tunewright"] = self.once(self.ours(CURVE, f"ours-{dtype}", dtype=dtype), steps)["losses"]
            plain = {"dtype": dtype, "settings": {"bf16": dtype == "bfloat16", "gradient_checkpointing": False}}
            losses["TRL"] = self.once(self.peer(CURVE, "trl_sft.py", f"trl-{dtype}", **plain), steps)["losses"]
            plain = {"dtype": dtype, "autocast": dtype == "bfloat16"}
            losses["PEFT loop"] = self.once(self.peer(CURVE, "plain_peft.py", f"peft-{dtype}", **plain), steps)[
                "losses"
            ]
        for seed in (1, 2):
            kept["bfloat16"][f"seed {seed}"] = self.once(self.ours(CURVE, f"ours-seed-{seed}", seed=seed), steps)[
                "losses"
            ]
        return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--pairs", type=int, default=3, help="rounds of one step per system")
    parser.add_argument("--only", nargs="*", default=list(WORKLOADS), choices=list(WORKLOADS), metavar="NAME")
    parser.add_argument("--skip-curves", action="store_true")
    parser.add_argument("--curve-steps", type=int, default=50)
    parser.add_argument("--best", nargs=2, metavar=("TRL", "PEFT"), help="peer settings to use instead of trying all")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "peers.json")
    asked = parser.parse_args()
    threads = machine.cores()
    begun = time.monotonic()

    def report(line: str) -> None:
        print(f"[{time.monotonic() - begun:5.0f} s] {line}", file=sys.stderr, flush=True)

    environment()
    folder = Path(tempfile.mkdtemp(prefix="tunewright-bench-"))
    bench = Bench(folder, threads, report)
    peak = gemm_peak()
    report(f"{threads} threads, matrix products at {peak:.0f} GFLOP/s; working in {folder}")
    bench.once(bench.ours(CURVE, "start", save_adapter=str(folder / "adapter")))
    result: dict[str, Any] = {
        "machine": {"processor": platform.processor() or platform.machine(), "threads": threads, "gemm_gflops": peak},
        "command": f"python benchmarks/peers.py {' '.join(sys.argv[1:])}".strip(),
        "python": platform.python_version(),
    }

    def save() -> None:
        result["minutes"] = round((time.monotonic() - begun) / 60, 1)
        asked.out.parent.mkdir(exist_ok=True)
        asked.out.write_text(json.dumps(result, indent=1))

    if not asked.skip_curves:
        report(f"loss curves, {asked.curve_steps} steps")
        result["curves"] = bench.curves(asked.curve_steps)
        save()
    if asked.best:
        best = dict(zip(SETTINGS, asked.best, strict=True))
    else:
        report("the peers' settings, on classify-200")
        result["settings"], best = bench.settings()
        save()
    result["best"] = best
    result["workloads"] = []
    for name in asked.only:
        workload = WORKLOADS[name]
        # A step of 32 long rows takes a peer minutes: one round shows the order of magnitude.
        result["workloads"].append(bench.side_by_side(workload, best, 1 if workload.batch == 32 else asked.pairs))
        seconds = result["workloads"][-1]["seconds"]
        report(
            f"{name}: "
            + "; ".join(f"{k} {', '.join(f'{s:.2f}' if s else 'died' for s in v)}" for k, v in seconds.items())
        )
        save()
    text = peers_table(result)
    asked.out.with_suffix(".md").write_text(text)
    print(text)
    if wrong := curves_disagree(result.get("curves")):
        sys.exit(wrong)


if __name__ == "__main__":
    main()
