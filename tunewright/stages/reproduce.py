"""Repeats a run from its own folder, and reports whether it is bit for bit the same, or else what differs."""

from __future__ import annotations

from typing import Any

from tunewright.core import records, run_folder
from tunewright.core.config import Plan, SweepConfig, load
from tunewright.core.console import Console
from tunewright.core.run_folder import Run
from tunewright.stages.runner import Runner, start


def reproduce(run: Run, console: Console) -> dict[str, Any]:
    """{equal, weights, losses, scores, run, differs: {what: [then, now]}}. The run is repeated in a folder next to the
    first, with its plan and its number of threads, up to the same stage (training, or the verdict). Raises
    RUN_INCOMPLETE before training is done."""
    run_folder.require(run, run.training, "run")
    plan = records.read(run.plan, Plan)
    without = {"threads": plan.threads, "track": [], "sweep": SweepConfig()}
    config = load(run.config).model_copy(update=without)
    context = start(config, _name(run), run.path.parent, console, f"tunewright runs reproduce {run.path}")
    rerun = Runner(context)
    rerun.advance("check")
    rerun.adopt(plan.model_copy(update={"adapt_threads": False}))
    rerun.advance("prove" if run.verdict.exists() else "train")
    return compare(run, context.run)


def _name(run: Run) -> str:
    number = 1
    while (run.path.parent / f"{run.name}-rerun-{number}").exists():
        number += 1
    return f"{run.name}-rerun-{number}"


def compare(then: Run, now: Run) -> dict[str, Any]:
    """What is equal in two runs, and what differs in their inputs."""
    weights = [run_folder.read_json(r.training)["weights_sha256"] for r in (then, now)]
    losses = [_losses(r) for r in (then, now)]
    both = then.verdict.exists() and now.verdict.exists()
    scores = [_scores(r) for r in (then, now)] if both else [{}, {}]
    inputs = [_inputs(r) for r in (then, now)]
    differs = {k: [inputs[0].get(k), inputs[1].get(k)] for k in sorted({*inputs[0], *inputs[1]})}
    same = {"weights": weights[0] == weights[1], "losses": losses[0] == losses[1], "scores": scores[0] == scores[1]}
    return {
        "equal": all(same.values()),
        **same,
        "compared": "weights, losses and scores" if both else "weights and losses",
        "run": str(now.path),
        "differs": {k: v for k, v in differs.items() if v[0] != v[1]},
    }


def _losses(run: Run) -> list[dict[str, object]]:
    lines = run_folder.read_lines(run.metrics)
    return [{k: v for k, v in line.items() if k not in ("seconds", "threads")} for line in lines]


def _scores(run: Run) -> dict[str, list[float]]:
    return {
        file.stem: [line["score"] for line in run_folder.read_lines(file)]
        for file in sorted(run.scores.glob("*.jsonl"))
    }


def _inputs(run: Run) -> dict[str, Any]:
    receipt, plan = run_folder.read_json(run.receipt), run_folder.read_json(run.plan)
    return {
        **{f"version of {k}": v for k, v in receipt["versions"].items()},
        **{f"sha256 of {k}": v for k, v in receipt["hashes"].items() if k not in ("config", "plan")},
        "processor": receipt["machine"]["processor"],
        "threads": receipt["threads"],
        "seed": receipt["seed"],
        "steps with fewer threads": receipt.get("crowded_steps") or 0,
        **{f"plan: {k}": v for k, v in plan.items() if k not in ("reasons", "estimate", "adapt_threads")},
    }
