"""Preference training beside TRL's DPOTrainer: the same pairs, steps and initial adapter, in alternating steps.

python examples/preferences/make_data.py
python benchmarks/methods.py [--rounds 3] [--curve-steps 50]

Peers have the environment of peers.py. Writes results/methods.json and .md; fails if the loss curves disagree.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers import HERE, PEERS, environment
from subject import Subject, take_turns
from tables import OURS, largest_difference, memory, ratios, times

from tunewright.system import machine

PAIRS = HERE.parent / "examples" / "preferences" / "data" / "preferences.jsonl"
BATCH, ROWS, BETA = 8, 64, 0.1
RULES = (
    "You write a satirical dictionary in the voice of a bitter and well-read newspaper editor of 1906. Answer with one"
    " definition of the word that the user names, in the part of speech that is given. Be brief and dry. Never explain"
    " the joke, never praise, give no example sentence, no etymology and no list. If a word has a respectable meaning,"
    " find the one that people act on instead. End with a full stop."
)
WORKLOADS = {
    "pairs": (None, "two definitions of a word, no instruction", 4.0),
    "pairs-instruction": (RULES, "the same, after an instruction of {shared} tokens", 6.0),
}
# What makes TRL fast: the reference is computed once, and nothing is recomputed. In these passes of a step.
FAST = {"precompute_ref_log_probs": True, "gradient_checkpointing": False}
SETTINGS: dict[str, dict[str, Any]] = {
    "TRL defaults": {"dtype": "float32", "settings": {}},
    "TRL, reference once": {"dtype": "float32", "settings": FAST},
    "TRL, reference once, passes of 2 pairs": {"dtype": "float32", "micro": 2, "settings": FAST},
    "TRL, reference once, passes of 1 pair": {"dtype": "float32", "micro": 1, "settings": FAST},
    "TRL, reference once, bf16": {"dtype": "bfloat16", "settings": {**FAST, "bf16": True}},
}


def tokenized(instruction: str | None, model: Path) -> tuple[list[dict[str, list[int]]], int]:
    """Pairs as token ids, rendered by the model's template; and how many tokens all prompts begin with."""
    from tunewright.data.messages import Chat, Message
    from tunewright.methods import METHODS
    from tunewright.model.decoding.generate import common_prefix
    from tunewright.tokens.template import load_template

    template, rows = load_template(model), list[dict[str, list[int]]]()
    for i, line in enumerate(PAIRS.read_text(encoding="utf-8").splitlines()[:ROWS]):
        given = json.loads(line)
        system = (Message("system", instruction),) if instruction else ()
        asked = (*system, Message("user", given["prompt"]), Message("assistant", given["chosen"]))
        chat = Chat(asked, where=f"line {i + 1}", rejected=Message("assistant", given["rejected"]))
        (pair,) = METHODS["dpo"].prepare(template, chat, i, None)
        prompt = next(t for t, w in enumerate(pair.sequences[0].weights) if w)
        chosen, rejected = (list(s.ids[prompt:]) for s in pair.sequences)
        rows.append({"prompt": list(pair.sequences[0].ids[:prompt]), "chosen": chosen, "rejected": rejected})
    return rows, common_prefix([r["prompt"] for r in rows])


class Bench:
    def __init__(self, folder: Path, dtype: str) -> None:
        from tunewright.model import loading

        self.folder, self.dtype, self.model = folder, dtype, loading.resolve("smollm2-135m")
        self.shared: dict[str, int] = {}
        for name, (instruction, _, _) in WORKLOADS.items():
            rows, self.shared[name] = tokenized(instruction, self.model)
            self.rows(name).write_text(json.dumps(rows))

    def rows(self, workload: str) -> Path:
        return self.folder / f"{workload}.json"

    def setup(self, workload: str, name: str, **more: Any) -> dict[str, Any]:
        folder = self.folder / f"{workload}-{name}".replace(" ", "-").replace(",", "")
        folder.mkdir(exist_ok=True)
        common = {"model": str(self.model), "threads": machine.cores(), "lr": 1e-4, "beta": BETA, "batch": BATCH}
        adapter = {"adapter": str(self.folder / "adapter"), "rows": str(self.rows(workload))}
        return {**common, **adapter, "name": name, "folder": str(folder), **more}

    def ours(self, workload: str, **more: Any) -> Subject:
        given = {"method": "dpo", "layout": "shared", "dtype": self.dtype, **more}
        return Subject(Path(sys.executable), HERE / "ours.py", self.setup(workload, OURS, **given))

    def trl(self, workload: str, name: str, **more: Any) -> Subject:
        return Subject(PEERS, HERE / "trl_dpo.py", self.setup(workload, name, **SETTINGS[name], **more))

    def side_by_side(self, workload: str, name: str, rounds: int) -> dict[str, Any]:
        subjects = [self.ours(workload), self.trl(workload, name)]
        taken, ends = take_turns(subjects, rounds)
        return {
            "seconds": {n: [t["seconds"] for t in steps] for n, steps in taken.items()},
            "losses": {n: [t["loss"] for t in steps] for n, steps in taken.items()},
            "peak_gb": {n: end["peak_gb"] for n, end in ends.items()},
            "versions": {n: end["versions"] for n, end in ends.items()},
            "shared": self.shared[workload],
        }

    def curve(self, subject: Subject, steps: int) -> list[float]:
        losses = [subject.step()["loss"] for _ in range(steps)]
        subject.end()
        return losses


def table(result: dict[str, Any]) -> str:
    versions: dict[str, str] = {}
    for row in result["workloads"].values():
        for given in row["versions"].values():
            versions |= given
    lines = [
        "# Methods\n",
        f"`{result['command']}`: {result['machine']}, {', '.join(f'{k} {v}' for k, v in sorted(versions.items()))}.",
        f"SmolLM2-135M, LoRA of rank 16, DPO, {BATCH} pairs a step; ours in {result['dtype']}. Speedup over the best",
        "of TRL's settings below: median of the rounds, and their range. The reference is computed before the first",
        "step.\n",
        "| one step of | speedup | target | ours, s | TRL, s | peak memory, ours / TRL |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in result["workloads"].items():
        _, description, target = WORKLOADS[name]
        ours, theirs = (statistics.median(row["seconds"][n]) for n in (OURS, result["best"]))
        lines.append(
            f"| {description.format(shared=row['shared'])} | {times(ratios(row['seconds']))} | {target:g} | {ours:.2f} "
            f"| {theirs:.2f} | {memory(row)} |"
        )
    lines += ["\n| TRL's setting | s per step |", "|---|---|"]
    lines += [f"| {name} | {seconds:.2f} |" for name, seconds in result["settings"].items()]
    if "curves" in result:
        ours, trl = result["curves"][OURS], result["curves"]["TRL"]
        lines.append(
            f"\nLoss curves of {len(ours)} steps in float32, from {ours[0]:.3f} to {ours[-1]:.3f}: "
            f"the largest difference is {largest_difference(ours, trl):.1e}."
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--curve-steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "methods.json")
    asked = parser.parse_args()
    environment()
    here, begun = machine.measure(), time.monotonic()
    bench = Bench(Path(tempfile.mkdtemp(prefix="tunewright-methods-")), here.dtype)

    def report(line: str) -> None:
        print(f"[{time.monotonic() - begun:5.0f} s] {line}", file=sys.stderr, flush=True)

    first = bench.ours("pairs", save_adapter=str(bench.folder / "adapter"))
    bench.curve(first, 1)
    where = f"{here.cores} threads of {here.processor}, float32 products at {here.fp32_gflops:.0f} GFLOP/s"
    result: dict[str, Any] = {"machine": where, "dtype": here.dtype, "workloads": {}, "settings": {}}
    result["command"] = f"python benchmarks/methods.py {' '.join(sys.argv[1:])}".strip()
    for name in SETTINGS:
        subject = bench.trl("pairs-instruction", name)
        seconds = [subject.step().get("seconds", float("inf")) for _ in range(2)]
        subject.end()
        result["settings"][name] = seconds[-1]
        report(f"{name}: {seconds[-1]:.2f} s")
    result["best"] = min(result["settings"], key=result["settings"].__getitem__)
    for workload in WORKLOADS:
        result["workloads"][workload] = bench.side_by_side(workload, result["best"], asked.rounds)
        report(f"{workload}: {result['workloads'][workload]['seconds']}")
    if asked.curve_steps:
        ours = bench.ours("pairs", dtype="float32")
        trl = bench.trl("pairs", "TRL, reference once")
        result["curves"] = {OURS: bench.curve(ours, asked.curve_steps), "TRL": bench.curve(trl, asked.curve_steps)}
    asked.out.write_text(json.dumps(result, indent=1) + "\n")
    asked.out.with_suffix(".md").write_text(table(result), encoding="utf-8")
    print(table(result))
    if "curves" in result and largest_difference(result["curves"][OURS], result["curves"]["TRL"]) > 1e-4:
        sys.exit("the loss curves differ by more than 1e-4")


if __name__ == "__main__":
    main()
