"""GRPO on strict JSON with several seeds, and RAFT at as many sampled tokens: examples/rewards, once for each seed.

python examples/rewards/make_data.py; python benchmarks/rewards.py --runs FOLDER [--seeds 1 2 3] [--steps 40]

A run that was stopped continues, one that is finished is only read. Writes results/rewards.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from predictions import took

from tunewright.core import records
from tunewright.core.records import REWARDS, Event, PairMeasure, Receipt, Rewards, Training, Verdict
from tunewright.core.run_folder import Run

HERE = Path(__file__).parent
CONFIG = HERE.parent / "examples" / "rewards" / "config.yaml"
HEAD = """# GRPO with several seeds

`python benchmarks/rewards.py --runs FOLDER`: examples/rewards with experiments.raft=true; {machine}.
Mean reward of greedy answers to the test prompts, and reward.check, which is never trained on. RAFT: fine-tuning on
the best of the base's samples, of no more sampled tokens.

| seed | steps | tokens sampled | before | GRPO | difference | check before | GRPO | RAFT | check | GRPO - RAFT | min |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


def finished(seed: int, steps: int, runs: Path) -> Run:
    """The run of a seed, started or continued if need be."""
    name = f"grpo-{steps}-{seed}"
    words = [str(runs / name)] if (runs / name).exists() else [str(CONFIG), "--runs", str(runs), "--name", name]
    settings = [] if (runs / name).exists() else [f"seed={seed}", f"train.steps={steps}", "experiments.raft=true"]
    subprocess.run([sys.executable, "-m", "tunewright", "run", *words, *settings], check=True)
    return Run(runs / name)


def row(seed: int, run: Run) -> str:
    verdict, rewards = records.read(run.verdict, Verdict), records.read(run.path / "rewards.json", REWARDS)
    assert isinstance(rewards, Rewards)
    assert rewards.raft is not None
    assert verdict.reward_check is not None
    raft, check = rewards.raft, verdict.reward_check
    seconds, _ = took(list(records.read_lines(run.events, Event)))
    cells = [
        str(seed),
        str(records.read(run.training, Training).steps),
        f"{raft.run_tokens:,}",
        f"{verdict.comparator.score:.3f}",
        f"{verdict.tuned:.3f}",
        f"{verdict.difference:+.3f} {verdict.interval:+.3f} {verdict.verdict}",
        f"{check.comparator:.3f}",
        f"{check.tuned:.3f}",
        f"{raft.metric.other:.3f} ({raft.rows} rows, {raft.tokens:,} tokens)",
        f"{raft.check.other:.3f}" if raft.check else "",
        f"{_against(raft.metric)} {raft.verdict}",
        f"{sum(seconds.values()) / 60:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _against(measure: PairMeasure) -> str:
    return f"{measure.difference:+.3f} {measure.interval:+.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=40)
    asked = parser.parse_args()
    lines: list[str] = []
    for seed in asked.seeds:
        run = finished(seed, asked.steps, asked.runs)
        machine = records.read(run.receipt, Receipt).machine
        lines.append(row(seed, run))
        words = f"{machine.cores} cores of {machine.processor}, {machine.fp32_gflops:.0f} GFLOP/s in float32"
        (HERE / "results" / "rewards.md").write_text(
            "\n".join([HEAD.format(machine=words), *lines, ""]), encoding="utf-8"
        )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
