"""Runs whose result is known in advance, end to end through the command line, on the real 135M model and real tweets.

python benchmarks/known_answers.py [--shuffles 40] [--only NAME ...] [--on local|ray --at-once N]

Writes results/known_answers.json and .md. With --on, the shuffled runs are processes, several at a time.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import recipe_tasks

from tunewright.cli.demo import rows_file
from tunewright.core.console import Console
from tunewright.data.text import normalised
from tunewright.fan import out
from tunewright.fan.jobs import Job, Where
from tunewright.judge.statistics import wilson

HERE = Path(__file__).parent
INSTRUCTION = (
    'data.instruction="Classify the sentiment of the text. Answer with one word: positive, negative or neutral."'
)
Rows = list[tuple[str, str]]
LAST = {"prove": "verdict.json", "export": "export.json"}  # the last file of a command
PLAIN = ["prove.evidence=plain", "prove.few_shot=[4]"]
SMALL = ["prove.evidence=plain", "prove.few_shot=[]", "prove.metric=reference_bits", "prove.max_new_tokens=8"]
SMALL += ["train.steps=24", "train.batch_size=4"]
# A reward by lot: the same for the same answer to the same prompt.
LOT = """reward:
  grader:
    type: python
    source: |
      import hashlib
      def grade(sample, item):
          drawn = repr((item["lot"], item["row"], sample["output_text"])).encode()
          return int.from_bytes(hashlib.sha256(drawn).digest()[:4], "big") / 2**32
train: {method: grpo, steps: 16, batch_size: 4, num_generations: 4, lr: 3.0e-4, patience: 0}
prove: {evidence: plain, max_new_tokens: 8}
"""


def tweets() -> Rows:
    return [(row["text"], row["label"]) for row in recipe_tasks.tweets()]


def distinct(rows: Rows) -> Rows:
    return [rows[i] for i in recipe_tasks.distinct([normalised(text) for text, _ in rows])]


def jargon(seed: int) -> Rows:
    """180 questions about hackers' slang and their answers of 60 to 300 characters."""
    rows = [(row["prompt"], row["completion"]) for row in recipe_tasks.lines("jargon", "jargon.jsonl")]
    drawn = random.Random(seed).sample([r for r in rows if 60 <= len(r[1]) <= 300], 260)
    return distinct(drawn)[:180]


def preferences(seed: int) -> list[dict[str, str]]:
    """180 pairs of short definitions by two dictionaries."""
    rows = [row for row in recipe_tasks.lines("preferences", "preferences.jsonl") if len(row["chosen"]) <= 200]
    drawn = random.Random(seed).sample(rows, 220)
    kept = recipe_tasks.distinct([normalised(row["prompt"]) for row in drawn])
    return [drawn[i] for i in kept][:180]


class Bench:
    def __init__(self, folder: Path, shuffles: int, where: Where) -> None:
        self.folder, self.shuffles, self.where, self.rows = folder.absolute(), shuffles, where, distinct(tweets())
        random.Random(1).shuffle(self.rows)

    def write(self, name: str, rows: Rows) -> str:
        file = self.folder / f"{name}.csv"
        with open(file, "w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out)
            writer.writerows([("text", "label"), *rows])
        return str(file)

    def write_chats(self, name: str, rows: Rows) -> str:
        file = self.folder / f"{name}.jsonl"
        lines = [json.dumps({"prompt": question, "completion": answer}) for question, answer in rows]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(file)

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tunewright", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=self.folder, check=False)

    def verdict(
        self, name: str, train: Rows, dev: Rows, test: Rows, *settings: str, verb: str = "prove"
    ) -> dict[str, Any]:
        self.ensure_run(name, verb, *self.on_sides(name, train, dev, test), *settings)
        return self.run_file(name, "verdict.json")

    def on_sides(self, name: str, train: Rows, dev: Rows, test: Rows) -> list[str]:
        """The words of a command that is given labelled rows by side."""
        sides = {"train": train, "dev": dev, "test": test}
        files = {side: self.write(f"{name}-{side}", rows) for side, rows in sides.items()}
        return [files["train"], f"data.dev={files['dev']}", f"data.test={files['test']}", INSTRUCTION]

    def ensure_run(self, name: str, verb: str, *words: str) -> None:
        """Make the run of that name, unless the folder of --runs already contains it."""
        if not (self.folder / "runs" / name / LAST[verb]).exists():
            done = self.cli(verb, *words, "--name", name)
            assert done.returncode == 0, done.stderr

    def ensure_runs(self, runs: Mapping[str, Sequence[str]]) -> None:
        """The same for `prove` with the words of each run, in the place that --on names."""
        jobs = []
        for name, words in runs.items():
            if self.where.on == "here":
                self.ensure_run(name, "prove", *words)
            elif not (self.folder / "runs" / name / LAST["prove"]).exists():
                cores = os.cpu_count() or 1
                threads = max(1, cores // (self.where.at_once or 1))
                command = (str(self.folder), "prove", *words, f"threads={threads}", "--name", name)
                jobs.append(Job(name, "fanned", command, self.folder, 1, threads))
        os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.absolute()), os.environ.get("PYTHONPATH", "")])
        for error in out.run(jobs, self.where, Console()).values():
            raise error

    def run_file(self, name: str, file: str) -> dict[str, Any]:
        return dict(json.loads((self.folder / "runs" / name / file).read_text()))

    # -- each case returns (expected result, actual result, whether they agree)

    def learnable(self) -> tuple[str, str, bool]:
        r = self.rows
        v = self.verdict("learnable", r[:900], r[900:980], r[980:1180], *PLAIN, "train.epochs=2")
        return "BETTER", _line(v), v["verdict"] == "BETTER"

    def null(self) -> tuple[str, str, bool]:
        """Real addresses (any free text would do) and a learning rate that changes next to nothing. No few-shot arm, so
        the arm to beat is the base with the same prompt."""
        settings = [
            *PLAIN,
            "prove.few_shot=[]",
            "prove.metric=chrf",
            "prove.max_test_rows=60",
            "train.lr=1e-9",
            "train.steps=3",
            "train.batch_size=4",
        ]
        self.ensure_run("null", "prove", str(rows_file()), *settings)
        v = self.run_file("null", "verdict.json")
        return "PRACTICALLY EQUAL or CANNOT TELL", _line(v), v["verdict"] in ("PRACTICALLY EQUAL", "CANNOT TELL")

    def shuffled(self) -> tuple[str, str, bool]:
        words: list[str] = []
        runs: dict[str, list[str]] = {}
        for seed in range(self.shuffles):
            draw = random.Random(seed)
            # Again: among fewer rows, less text counts as boilerplate, so more pairs are near-duplicates.
            rows = distinct(draw.sample(self.rows, 290))
            labels = [label for _, label in rows]
            draw.shuffle(labels)
            rows = [(text, label) for (text, _), label in zip(rows, labels, strict=True)]
            name, sides = f"shuffled-{seed}", (rows[:150], rows[150:190], rows[190:])
            runs[name] = [*self.on_sides(name, *sides), *PLAIN, "train.epochs=1"]
        self.ensure_runs(runs)
        for name in runs:
            v = self.run_file(name, "verdict.json")
            words.append(v["verdict"])
            print(f"  {name}: {_line(v)}", file=sys.stderr, flush=True)
        better = words.count("BETTER")
        low, high = wilson(better, len(words))
        counts = ", ".join(f"{words.count(w)} {w}" for w in sorted(set(words)))
        return (
            "BETTER in at most 5 % of runs",
            f"{counts}; rate {better / len(words):.1%} [{low:.1%}, {high:.1%}]",
            better <= 0.05 * len(words),
        )

    def shuffled_answers(self) -> tuple[str, str, bool]:
        """Free text in one voice (the Jargon File), each answer given to another question; and, as a control of the
        control, a few runs of the same size in which it is not."""
        words: dict[bool, list[str]] = {True: [], False: []}
        dependence: dict[bool, list[float]] = {True: [], False: []}
        runs: dict[str, list[str]] = {}
        for seed in [*range(self.shuffles), *range(-1, -4, -1)]:
            rows = jargon(seed)
            if seed >= 0:
                answers = [answer for _, answer in rows]
                random.Random(seed).shuffle(answers)
                rows = [(question, answer) for (question, _), answer in zip(rows, answers, strict=True)]
            name = f"answers-{seed}"
            sides = {"train": rows[:96], "dev": rows[96:110], "test": rows[110:]}
            files = {side: self.write_chats(f"{name}-{side}", part) for side, part in sides.items()}
            held_out = [f"data.{side}={files[side]}" for side in ("dev", "test")]
            runs[name] = [files["train"], *held_out, *SMALL]
        self.ensure_runs(runs)
        for name in runs:
            v, shuffle = self.run_file(name, "verdict.json"), not name.startswith("answers--")
            words[shuffle].append(v["verdict"])
            dependence[shuffle].append(v["topic"]["difference"])
            print(f"  {name}: {_line(v)}; topic {v['topic']}", file=sys.stderr, flush=True)
        better = [words[shuffle].count("BETTER") for shuffle in (True, False)]
        means = [f"{np.mean(dependence[shuffle]):+.3f}" for shuffle in (True, False)]
        return (
            "BETTER in none of the shuffled runs, and in all of the others",
            f"{better[0]} of {len(words[True])} shuffled, {better[1]} of {len(words[False])} others; after its own "
            f"question, a reference answer is cheaper by {means[0]} and {means[1]} bits per byte (means)",
            better == [0, len(words[False])],
        )

    def shuffled_preferences(self) -> tuple[str, str, bool]:
        """Pairs whose sides are swapped by a coin, trained with DPO; and, as a control of the control, a few runs in
        which they are not."""
        words: list[str] = []
        losses: dict[bool, list[float]] = {True: [], False: []}  # of dev, the lowest of a run
        runs: dict[str, list[str]] = {}
        for seed in [*range(min(self.shuffles, 20)), *range(-1, -3, -1)]:
            rows, draw = preferences(seed), random.Random(seed)
            if seed >= 0:
                sides = {True: ("rejected", "chosen"), False: ("chosen", "rejected")}
                flips = [sides[draw.random() < 0.5] for _ in rows]
                rows = [{**r, "chosen": r[a], "rejected": r[b]} for r, (a, b) in zip(rows, flips, strict=True)]
            name = f"preferences-{seed}"
            parts = {"train": rows[:96], "dev": rows[96:110], "test": rows[110:]}
            for side, part in parts.items():
                file = self.folder / f"{name}-{side}.jsonl"
                file.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
            files = {side: str(self.folder / f"{name}-{side}.jsonl") for side in parts}
            held_out = [f"data.{side}={files[side]}" for side in ("dev", "test")]
            runs[name] = [files["train"], *held_out, *SMALL, "train.method=dpo", "train.lr=2e-4"]
        self.ensure_runs(runs)
        for name in runs:
            v, swapped = self.run_file(name, "verdict.json"), not name.startswith("preferences--")
            words += [v["verdict"]] if swapped else []
            losses[swapped].append(self.run_file(name, "training.json")["best_dev_loss"])
            print(f"  {name}: {_line(v)}; dev loss {losses[swapped][-1]:.3f}", file=sys.stderr, flush=True)
        better, means = words.count("BETTER"), [float(np.mean(losses[swapped])) for swapped in (True, False)]
        counts = ", ".join(f"{words.count(w)} {w}" for w in sorted(set(words)))
        return (
            "BETTER in none of the runs whose sides are swapped by a coin, where the dev loss stays near log 2 = 0.693",
            f"{better} of {len(words)} BETTER ({counts}); the lowest dev loss of a run is {means[0]:.3f}, and "
            f"{means[1]:.3f} where no side is swapped (means)",
            better == 0 and means[0] > 0.6 > means[1],
        )

    def random_rewards(self) -> tuple[str, str, bool]:
        """Prompts whose answers are graded by lot, trained with GRPO."""
        config = self.folder / "lot.yaml"
        config.write_text(LOT, encoding="utf-8")
        runs: dict[str, list[str]] = {}
        for seed in range(min(self.shuffles, 20)):
            rows = [{"prompt": question, "row": n, "lot": seed} for n, (question, _) in enumerate(jargon(seed))]
            name, parts = f"random-{seed}", {"train": rows[:96], "dev": rows[96:110], "test": rows[110:]}
            files = {side: self.folder / f"{name}-{side}.jsonl" for side in parts}
            for side, part in parts.items():
                files[side].write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
            runs[name] = [str(config), *(f"data.{side}={file}" for side, file in files.items()), f"seed={seed}"]
        self.ensure_runs(runs)
        words: list[str] = []
        differences: list[float] = []
        for name in runs:
            v = self.run_file(name, "verdict.json")
            words.append(v["verdict"])
            differences.append(v["difference"])
            print(f"  {name}: {_line(v)}", file=sys.stderr, flush=True)
        counts = ", ".join(f"{words.count(w)} {w}" for w in sorted(set(words)))
        return (
            "BETTER in none of the runs whose rewards are drawn by lot",
            f"{counts}; mean difference of the rewards {np.mean(differences):+.3f}",
            "BETTER" not in words,
        )

    def leak(self) -> tuple[str, str, bool]:
        files = [self.write(f"leak-{k}", rows) for k, rows in (("train", self.rows[:100]), ("test", self.rows[95:140]))]
        done = self.cli("check", files[0], f"data.test={files[1]}")
        reported = done.stderr.replace(f"{self.folder}/", "").strip().splitlines()
        return (
            "SPLIT_LEAK, exit status 2, 5 rows",
            f"exit status {done.returncode}: {reported[0][:140]}",
            done.returncode == 2 and len(reported) >= 5 and "SPLIT_LEAK" in done.stderr,
        )

    def contradictions(self) -> tuple[str, str, bool]:
        rows = self.rows[:400]
        other = {"positive": "negative", "negative": "neutral", "neutral": "positive"}
        twice = rows + [(text, other[label]) for text, label in rows[:100]]
        audit = json.loads(self.cli("check", self.write("contradictions", twice), "--json").stdout)
        return (
            "ceiling 80.0 % (100 of 500 rows cannot be matched)",
            f"ceiling {audit['ceiling']:.1%}",
            abs(audit["ceiling"] - 0.8) < 1e-9,
        )

    def noise(self) -> tuple[str, str, bool]:
        """Labels flagged by the audit (TF-IDF, no model) and by cross-fitting (the recipe on halves of the rows),
        against the planted errors."""
        counts: dict[str, list[tuple[int, ...]]] = defaultdict(list)
        fractions = []
        for part in range(2):
            rows = self.rows[1000 * part : 1000 * part + 1000]
            draw, names, name = random.Random(part), ("positive", "negative", "neutral"), f"noise-{part}"
            planted = [
                (t, draw.choice([x for x in names if x != label]) if draw.random() < 0.15 else label)
                for t, label in rows
            ]
            self.ensure_run(name, "export", self.write(name, planted), INSTRUCTION, *PLAIN,
                      "experiments.crossfit=true", "train.epochs=1.5",
                      "split.test=0.1", "export.to=[adapter]")  # fmt: skip
            split = (self.folder / "runs" / name / "data" / "split.jsonl").read_text().splitlines()
            train = {line["row"] for line in map(json.loads, split) if line["side"] == "train"}
            wrong = {i for i, (a, b) in enumerate(zip(planted, rows, strict=True)) if a != b} & train
            crossfit = self.run_file(name, "crossfit.json")
            flagged = {
                "audit": self.run_file(name, "data/audit.json")["suspects"],
                "cross-fit": crossfit["suspects"],
                "confident learning on the same probabilities": [
                    {"row": i} for i in self.confident_learning(name, [x for _, x in planted])
                ],
            }
            for who, suspects in flagged.items():
                counts[who].append((len({s["row"] for s in suspects} & wrong), len(suspects), len(wrong)))
            low, high = crossfit["interval"]
            fractions.append(f"{crossfit['rate']:.1%} [{low:.1%}, {high:.1%}] (planted {len(wrong) / len(train):.1%})")
        reported = []
        for who, parts in counts.items():
            both = tuple(map(sum, zip(*parts, strict=True)))
            words = [f"{hits / max(1, flagged):.2f} / {hits / wrong:.2f}" for hits, flagged, wrong in (*parts, both)]
            reported.append(f"{who} {words[-1]} (the parts: {', '.join(words[:-1])})")
        hits, all_flagged, all_wrong = map(sum, zip(*counts["cross-fit"], strict=True))
        return (
            "precision 0.7 / recall 0.6 of cross-fitting (goal), two parts of 1,000 tweets together",
            f"{'; '.join(reported)}; fraction of wrong labels, estimated by cross-fitting: {', '.join(fractions)}",
            hits / all_flagged >= 0.7 and hits / all_wrong >= 0.6,
        )

    def confident_learning(self, name: str, labels: list[str]) -> set[int]:
        """Northcutt, Jiang & Chuang 2021 (1911.00068): rows whose most probable label, among those above their
        threshold, is not the given one."""
        logp: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for file in (self.folder / "runs" / name / "branches").glob("cut-*/scores/*.jsonl"):
            for line in map(json.loads, file.read_text().splitlines()):
                for x, prob in line["probs"].items():
                    logp[line["row"]][x] += math.log(max(prob, 1e-9))
        probs = {}
        for row, of in logp.items():
            total = sum(math.exp(v / 2) for v in of.values())
            probs[row] = {x: math.exp(v / 2) / total for x, v in of.items()}
        names = sorted(set(labels))
        threshold = {x: np.mean([p[x] for row, p in probs.items() if labels[row] == x]) for x in names}
        flagged = set()
        for row, p in probs.items():
            above = [x for x in names if p[x] >= threshold[x]]
            if above and max(above, key=p.__getitem__) != labels[row]:
                flagged.add(row)
        return flagged

    def forgetful(self) -> tuple[str, str, bool]:
        r = self.rows
        settings = [
            "prove.evidence=full",
            "prove.few_shot=[4]",
            "train.epochs=6",
            "train.lr=0.004",
            "train.patience=0",
            "experiments.mitigation=true",
        ]
        self.verdict("forgetful", r[:160], r[160:220], r[220:320], *settings, verb="export")
        f, m = self.run_file("forgetful", "forgetting.json"), self.run_file("forgetful", "mitigation.json")
        lost = {k: p["verdict"] for k, p in f["probes"].items() if "verdict" in p}
        before, after = m["variants"]["unchanged"], m["variants"][m["chosen"]]
        reported = (
            f"probes {lost}; KL on generic text {before['generic']['kl_bits']:.2f} bits as it is, "
            f"{after['generic']['kl_bits']:.2f} with {m['chosen']} "
            f"(dev {before['dev']:.3f} and {after['dev']:.3f}); scale that the rule chooses "
            f"{f['sweep']['chosen']:g}"
        )

        tripped = "WORSE" in lost.values()
        return (
            "a probe is WORSE; a mitigation lowers KL at an equal dev score",
            reported,
            tripped and after["generic"]["kl_bits"] < before["generic"]["kl_bits"],
        )


CASES: dict[str, Callable[[Bench], tuple[str, str, bool]]] = {
    name: getattr(Bench, name)
    for name in (
        "leak",
        "contradictions",
        "noise",
        "learnable",
        "null",
        "forgetful",
        "shuffled",
        "shuffled_answers",
        "shuffled_preferences",
        "random_rewards",
    )
}


def _line(v: dict[str, Any]) -> str:
    other = v["comparator"]
    low, high = v["interval"]
    scores = f"{v['tuned']:.3f} against {other['score']:.3f} ({other['name']})"
    return f"{v['verdict']}: {scores}, {low:+.3f} to {high:+.3f}, {v['n']} rows"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--shuffles", type=int, default=40)
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES), metavar="NAME")
    parser.add_argument("--runs", type=Path, help="folder to run in; runs that it already contains are reused")
    parser.add_argument("--on", default="here", choices=["here", "local", "ray"])
    parser.add_argument("--at-once", type=int)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "known_answers.json")
    asked = parser.parse_args()
    folder = asked.runs or Path(tempfile.mkdtemp(prefix="tunewright-known-"))
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(folder, asked.shuffles, Where(asked.on, asked.at_once))
    kept = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    for name in asked.only:
        begun = time.monotonic()
        wanted, reported, held = CASES[name](bench)
        reported = reported.replace(f"{bench.folder}/", "")
        kept[name] = {"wanted": wanted, "result": reported, "held": held, "seconds": round(time.monotonic() - begun)}
        print(
            f"{name}: {'as expected' if held else 'NOT AS EXPECTED'}: {reported} ({kept[name]['seconds']} s)",
            file=sys.stderr,
            flush=True,
        )
        asked.out.write_text(json.dumps(kept, indent=1))
    lines = [
        f"`python benchmarks/known_answers.py --shuffles {asked.shuffles}`: SmolLM2-135M-Instruct, tweets "
        "(vaderSentiment), through the command line.",
        "",
        "| run | expected | actual | as expected |",
        "|---|---|---|---|",
        *(f"| {k} | {c['wanted']} | {c['result']} | {'yes' if c['held'] else '**no**'} |" for k, c in kept.items()),
    ]
    asked.out.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    sys.exit(not all(c["held"] for c in kept.values()))


if __name__ == "__main__":
    main()
