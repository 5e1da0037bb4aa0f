"""How well did the plan predict a run's time and memory? Of finished runs that were not interrupted.

python benchmarks/predictions.py RUN...      Writes results/predictions.md.
"""

from __future__ import annotations

import argparse
import re
from datetime import datetime
from pathlib import Path

from tunewright.core import records
from tunewright.core.config import Plan
from tunewright.core.records import Event, Receipt
from tunewright.core.run_folder import Run

HERE = Path(__file__).parent


def took(events: list[Event]) -> tuple[dict[str, float], float]:
    """Seconds of each stage, and the largest memory in GB."""
    started: dict[str, datetime] = {}
    seconds: dict[str, float] = {}
    peak = 0.0
    for event in events:
        stage, _, what = event.event.rpartition("_")
        if what == "started":
            started[stage] = datetime.fromisoformat(event.time)
        elif what == "finished" and stage in started:
            seconds[stage] = (datetime.fromisoformat(event.time) - started.pop(stage)).total_seconds()
            peak = max(peak, float(str(event.facts.get("process_peak_gb", 0.0))))
    return seconds, peak


def row(folder: Path) -> str:
    run = Run(folder)
    estimate = records.read(run.plan, Plan).estimate
    assert estimate is not None
    seconds, peak = took(list(records.read_lines(run.events, Event)))
    parts = ", ".join(f"{name} {s:.0f}/{seconds.get(name, 0):.0f}" for name, s in estimate.stages.items())
    predicted, actual = sum(estimate.stages.values()), sum(seconds.get(name, 0.0) for name in estimate.stages)
    memory = f"{estimate.peak_gb:.1f} | {peak:.1f} | {estimate.peak_gb / peak - 1:+.0%}"
    return f"| {folder.name} | {predicted:.0f} | {actual:.0f} | {predicted / actual - 1:+.0%} | {memory} | {parts} |"


def made_by(folder: Path) -> str:
    """The command of a run, and the speed of its machine."""
    receipt = records.read(Run(folder).receipt, Receipt)
    command, machine = re.sub(r" --runs \S+", "", receipt.command), receipt.machine
    return f"- `{command}`: {machine.fp32_gflops:.0f} GFLOP/s in float32, {machine.bf16_gflops:.0f} in bfloat16"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    runs = parser.parse_args().runs
    lines = [
        "# Predictions of the plan\n",
        "`python benchmarks/predictions.py RUN...`: seconds of the stages that the plan predicted; memory in GB.\n",
        "| run | predicted | took | error | predicted GB | peak GB | error | stages: predicted/took |",
        "|---|---|---|---|---|---|---|---|",
        *map(row, runs),
        "",
        *map(made_by, runs),
    ]
    (HERE / "results" / "predictions.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
