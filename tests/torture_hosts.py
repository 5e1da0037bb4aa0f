"""Kills of processes and whole hosts while two hosts train the real 135M model, compared with a straight run.

python tests/torture_hosts.py [--kills 20] [--steps 24] [--folder FOLDER]      Writes benchmarks/results/hosts.json.

The hosts are network namespaces of this machine (needs root on Linux). After each kill the same command is started
again on both. Continues where it stopped if it is given the folder of an earlier attempt.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import hosts

from tunewright.cli.demo import rows_file
from tunewright.core.run_folder import Run, read_lines, sha256

HERE = Path(__file__).parent.parent
SETTINGS = ["train.batch_size=4", "train.tokens_per_pass=400", "checkpoint.every=1", "threads=1", "split.dev=0"]
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def planned(folder: Path, name: str, steps: int) -> Run:
    run = Run(folder / name)
    if not run.plan.exists():
        words = ["plan", str(rows_file()), *SETTINGS, f"train.steps={steps}", "--name", name, "--runs", str(folder)]
        subprocess.run([sys.executable, "-m", "tunewright", *words, "-q"], check=True, cwd=folder)
    return run


def step_of(run: Run) -> int:
    return max((int(line["step"]) for line in read_lines(run.metrics)), default=0)


def killed(both: tuple[hosts.Host, hosts.Host], run: Run, port: int, draw: random.Random) -> dict[str, object] | None:
    """Starts both hosts, and kills something after the first new step. Returns what; None if the run ended first."""
    started, before = hosts.torchrun(both, run.path, port, **ENVIRONMENT), step_of(run)
    while step_of(run) <= before and any(p.poll() is None for p in started):
        time.sleep(0.05)
    time.sleep(draw.uniform(0, 3))  # anywhere within a step, its checkpoint or its metrics
    if run.training.exists():
        return None
    host, whole = draw.choice(both), draw.random() < 0.5
    victims = host.processes() if whole else host.processes()[-1:]
    for process in victims:
        os.kill(process, signal.SIGKILL)
    facts: dict[str, object] = {"host": both.index(host), "whole_host": whole, "after_step": step_of(run)}
    start = time.monotonic()
    outputs = [p.communicate(timeout=900)[0] for p in started]
    lost = any("RANKS_LOST" in text for text in outputs)
    return {**facts, "others_ended_in_seconds": round(time.monotonic() - start, 1), "ranks_lost": lost}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="hosts-"))
    folder.mkdir(exist_ok=True)
    straight, run = (planned(folder, name, given.steps) for name in ("straight", "hosts"))
    if not straight.training.exists():
        subprocess.run([sys.executable, "-m", "tunewright", "train", str(straight.path), "-q"], check=True)
    draw, kills = random.Random(0), list[dict[str, object]]()
    with hosts.two() as both:
        while len(kills) < given.kills:
            kill = killed(both, run, 29600 + len(kills), draw)
            assert kill is not None, "the run ended before all kills; give it more --steps"
            kills.append(kill)
            print(json.dumps(kill), flush=True)  # noqa: T201
        ended = [p.communicate(timeout=3600)[0] for p in hosts.torchrun(both, run.path, 29599, **ENVIRONMENT)]
    assert run.training.exists(), ended
    losses = [[line.get("loss") for line in read_lines(r.metrics)] for r in (straight, run)]
    facts = {
        "model": "smollm2-135m",
        "steps": given.steps,
        "kills": kills,
        "same_weights": sha256(straight.weights) == sha256(run.weights),
        "same_losses": losses[0] == losses[1],
    }
    (HERE / "benchmarks" / "results" / "hosts.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({**facts, "kills": len(kills)}))  # noqa: T201
    sys.exit(not (facts["same_weights"] and facts["same_losses"]))


if __name__ == "__main__":
    main()
