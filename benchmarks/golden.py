"""Do two commits compute the same? Three fixed runs on one thread with the code of each commit: weights, losses,
answers and verdicts must be equal, bit for bit, on the same machine.

    make data
    python benchmarks/golden.py record COMMIT --out FILE.json    # three runs with that commit's code (half an hour)
    python benchmarks/golden.py record . --out FILE.json         # with the working tree's code
    python benchmarks/golden.py compare FILE.json FILE.json      # exits with 1 if they differ
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
INSTRUCTION = "Classify the sentiment of the user text. Answer with one word: positive, negative or neutral."
COMMON = {
    "threads": "1",
    "train.dtype": "float32",
    "train.tokens_per_pass": "2048",
    "train.gradient_checkpointing": "none",
    "prove.batch_size": "16",
    "date": "2026-01-01",
}
# Name -> (rows, settings). Every number that a plan could take from the machine is fixed.
RUNS: dict[str, tuple[str, dict[str, str]]] = {
    "addresses": (
        "addresses/data/addresses.jsonl",
        {
            "train.steps": "30",
            "train.batch_size": "4",
            "train.eval_every": "15",
            "split.dev": "0.03",
            "split.test": "0.04",
            "prove.few_shot": "[4]",
            "prove.evidence": "full",
            "cost.requests": "4",
            "experiments.mitigation": "true",
        },
    ),
    "sentiment": (
        "sentiment/data/tweets.csv",
        {
            "train.steps": "20",
            "train.batch_size": "8",
            "train.eval_every": "10",
            "split.dev": "0.05",
            "split.test": "0.1",
            "prove.few_shot": "[6]",
            "experiments.crossfit": "true",
            "experiments.cleaning": "true",
            "experiments.prompt_distillation": "16",
            "data.instruction": json.dumps(INSTRUCTION),
        },
    ),
    "docs": (
        "docs/data/sqlite",
        {
            "train.steps": "10",
            "train.batch_size": "8",
            "train.max_length": "256",
            "split.dev": "0.05",
            "split.test": "0.1",
            "export.to": "[adapter]",
        },
    ),
}
TWEETS = 801  # lines of tweets.csv that are used, including the header
# Settings under the names that they had up to commit 0de7ec4; for branches, arms and score fields, old and new names.
OLD_KEYS = {
    "train.batch_size": "train.batch",
    "train.tokens_per_pass": "train.capacity",
    "train.gradient_checkpointing": "train.recompute",
    "prove.few_shot": "prove.shots",
    "prove.batch_size": "prove.batch",
    "experiments.mitigation": "forget.mitigate",
    "experiments.crossfit": "prove.crossfit",
    "experiments.cleaning": "prove.cleaning",
    "experiments.prompt_distillation": "prove.internalise",
    "export.to": "export.merged",
}
OLD_VALUES = {"export.to": "false"}
OLD_NAMES = {"internalised": "prompt-distillation", "test-internalised": "test-distilled", "probs": "shares"}
CALIBRATION = {"as_given": "uncalibrated", "tempered": "calibrated", "wanted": "target_accuracy"}
SCORE = ("row", "answer", "score", "probs", "nats")
VERDICT = (
    "verdict",
    "metric",
    "tuned",
    "difference",
    "interval",
    "p_value",
    "unbeaten",
    "variants_on_dev",
    "calibration",
)


def record(commit: str, out: Path) -> None:
    """Make the three runs, two at a time, and write their results."""
    with tempfile.TemporaryDirectory() as scratch:
        code = ROOT if commit == "." else Path(scratch) / "code"
        if commit != ".":
            subprocess.run(["git", "worktree", "add", "--detach", "-q", str(code), commit], cwd=ROOT, check=True)
        try:
            with ThreadPoolExecutor(2) as pool:
                folders = list(pool.map(lambda name: run(name, code, Path(scratch)), RUNS))
            results = {name: collect(folder) for name, folder in zip(RUNS, folders, strict=True)}
            out.write_text(json.dumps(results, indent=1, ensure_ascii=False), encoding="utf-8")
        finally:
            if commit != ".":
                subprocess.run(["git", "worktree", "remove", "--force", str(code)], cwd=ROOT, check=True)


def run(name: str, code: Path, scratch: Path) -> Path:
    """Make one run with the code in ``code``; return its folder."""
    path, settings = RUNS[name]
    rows = EXAMPLES / path
    if name == "sentiment":
        rows = scratch / "tweets.csv"
        lines = (EXAMPLES / path).read_text(encoding="utf-8").splitlines(keepends=True)
        rows.write_text("".join(lines[:TWEETS]), encoding="utf-8")
    old = (code / "tunewright" / "config.py").exists()
    chosen = {**COMMON, **settings}
    given = [f"{OLD_KEYS.get(k, k)}={OLD_VALUES.get(k, v)}" if old else f"{k}={v}" for k, v in chosen.items()]
    command = [
        sys.executable,
        "-m",
        "tunewright",
        "run",
        str(rows),
        "--runs",
        str(scratch / "runs"),
        "--name",
        name,
        *given,
    ]
    subprocess.run(command, cwd=scratch, env={**os.environ, "PYTHONPATH": str(code)}, check=True)
    return scratch / "runs" / name


def collect(run: Path) -> dict[str, Any]:
    """Everything that must be equal, by name: weights, losses, answers with scores, the numbers of the verdict."""
    kept: dict[str, Any] = {}
    for folder in (run, *sorted(run.glob("branches/*"))):
        name = "" if folder == run else f"{OLD_NAMES.get(folder.name, folder.name)}: "
        kept[f"{name}weights"] = _read(folder / "training.json")["weights_sha256"]
        lines = _lines(folder / "metrics.jsonl")
        kept[f"{name}losses"] = [
            [line[k] for k in ("step", "loss", "grad_norm", "dev_loss") if k in line] for line in lines
        ]
        for file in sorted((folder / "scores").rglob("*.jsonl")):
            stem = str(file.relative_to(folder / "scores").with_suffix("")).replace("again/", "rerun/")
            answers = [[line.get(k, line.get(OLD_NAMES.get(k, k))) for k in SCORE] for line in _lines(file)]
            kept[f"{name}answers {OLD_NAMES.get(stem, stem)}"] = answers
    verdict = _read(run / "verdict.json")
    kept["verdict"] = {k: verdict.get(k) for k in VERDICT}
    if calibration := verdict.get("calibration"):
        kept["verdict"]["calibration"] = {CALIBRATION.get(k, k): v for k, v in calibration.items()}
    kept["arms"] = {k: [arm["score"], arm["interval"], arm["summary"]] for k, arm in verdict["arms"].items()}
    forgetting = _read(run / "forgetting.json")
    measures = ("base_bits", "kl_bits", "kl_interval", "delta_bits")
    kept["forgetting"] = {k: [forgetting[k][m] for m in measures] for k in ("task", "generic") if k in forgetting}
    kept["probes"] = {
        k: [v["base"], v["tuned"], v["difference"]] for k, v in forgetting.get("probes", {}).items() if "tuned" in v
    }
    kept["export"] = [[x["kind"], x["largest_difference"], x["same_texts"]] for x in _read(run / "export.json")]
    return kept


def compare(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Print what is equal and what is not; return whether everything is."""
    same = True
    for name in RUNS:
        a, b = first[name], second[name]
        different = [k for k in sorted({*a, *b}) if a.get(k) != b.get(k)]
        print(f"{name}: {len({*a, *b}) - len(different)} of {len({*a, *b})} equal, bit for bit")
        for key in different:
            same = False
            print(f"  {key}: {_short(a.get(key))} | {_short(b.get(key))}")
    return same


def _short(value: Any) -> str:
    return "absent" if value is None else json.dumps(value, ensure_ascii=False)[:160]


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    recording = commands.add_parser("record")
    recording.add_argument("commit")
    recording.add_argument("--out", type=Path, required=True)
    comparing = commands.add_parser("compare")
    comparing.add_argument("files", nargs=2, type=Path)
    given = parser.parse_args()
    if given.command == "record":
        record(given.commit, given.out)
    else:
        sys.exit(not compare(*(_read(file) for file in given.files)))


if __name__ == "__main__":
    main()
