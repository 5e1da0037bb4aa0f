"""The cost of evidence: seconds of every stage of the demo task, with plain and with full evidence.

python benchmarks/evidence.py [--runs FOLDER]      Writes results/evidence.md; reuses the runs in FOLDER.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path

from tunewright.core.run_folder import read_json, read_lines

HERE = Path(__file__).parent
CONFIG = HERE.parent / "examples" / "addresses" / "config.yaml"
KINDS = ("plain", "full")


def seconds(run: Path) -> dict[str, float]:
    """The seconds of every stage, from the run's events (to the second)."""
    begun: dict[str, datetime] = {}
    kept: dict[str, float] = {}
    for event in read_lines(run / "events.jsonl"):
        stage, _, what = event["event"].rpartition("_")
        now = datetime.fromisoformat(event["time"])
        if what == "started":
            begun[stage] = now
        elif what == "finished" and stage in begun:
            kept[stage] = kept.get(stage, 0.0) + (now - begun[stage]).total_seconds()
    return kept


def table(runs: dict[str, Path]) -> str:
    taken = {kind: seconds(run) for kind, run in runs.items()}
    steps = read_json(runs["full"] / "plan.json")["steps"]
    threads = {kind: read_json(run / "receipt.json")["threads"] for kind, run in runs.items()}
    assert len(set(threads.values())) == 1, f"runs on different numbers of threads: {threads}"
    stages = [s for s in taken["full"] if any(t.get(s, 0) >= 1 for t in taken.values())]
    total = {kind: sum(t.values()) for kind, t in taken.items()}
    rows = {s: [taken[k].get(s, 0.0) for k in KINDS] for s in stages} | {"all": list(total.values())}
    times = " | ".join(f"{x / total['plain']:.2f}" for x in total.values())
    lines = [
        f"`python benchmarks/evidence.py`: seconds of each stage of the demo task (1,504 addresses, {steps} steps), "
        f"threads: {threads['full']}.",
        "One run each, so the ratio is accurate to perhaps a tenth.",
        "",
        f"| stage | {' | '.join(KINDS)} |",
        "|---|" + "---|" * len(KINDS),
        *(f"| {name} | {' | '.join(f'{x:.0f}' for x in row)} |" for name, row in rows.items()),
        f"| relative to plain | {times} |",
        "",
        *(f"{kind}: {read_json(run / 'verdict.json')['verdict']}." for kind, run in runs.items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--runs", type=Path, default=Path(tempfile.gettempdir()) / "tunewright-evidence")
    root: Path = parser.parse_args().runs
    data = CONFIG.parent / "data"
    if not data.exists():
        subprocess.run([sys.executable, str(CONFIG.parent / "make_data.py")], check=True)
    runs = {kind: root / kind for kind in KINDS}
    for kind, run in runs.items():
        if not (run / "report.html").exists():
            target = (
                [str(run)]
                if run.exists()
                else [str(CONFIG), f"prove.evidence={kind}", "--runs", str(root), "--name", kind]
            )
            subprocess.run([sys.executable, "-m", "tunewright", "run", *target], check=True)
    reported = table(runs)
    (HERE / "results" / "evidence.md").write_text(reported)
    print(reported)


if __name__ == "__main__":
    main()
