"""How good are the plan's automatic choices? The same rows, model and engine; only the recipe differs.

python benchmarks/recipe.py [--only TASK ...] [--recipes NAME ...] [--seeds N] [--model NAME] [--hours H] [--aside]

Goes cell by cell (task, recipe, seed), one seed after another, and continues where it stopped. Writes
results/recipe.json and results/recipe.md. Peers' recipes are what their own documentation or examples set for LoRA.
All of them run in our engine, without dropout (which would only make the engine slower), so seconds are a recipe's,
not a program's. Theirs evaluate nothing along the way.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import recipe_tables
from recipe_tables import OURS
from recipe_tasks import TASKS, Task, write

from tunewright.core import config as configuration
from tunewright.core import records
from tunewright.core.config import Config, Plan
from tunewright.core.console import Console
from tunewright.core.run_folder import Run, make_folder
from tunewright.data import dataset
from tunewright.data.messages import Chat, Example
from tunewright.data.scores import mean
from tunewright.judge.evaluate import score_arm
from tunewright.model import likelihood
from tunewright.model.language_model import LanguageModel
from tunewright.runtime import inputs as gathering
from tunewright.runtime.answers import Answers
from tunewright.runtime.models import Models
from tunewright.tokens.sequences import flat
from tunewright.train import loop, planning
from tunewright.train.recipe import RowStats

HERE = Path(__file__).parent
ROOT = HERE.parent / "build" / "recipe"
POINTS = 8  # of a curve
BUSY = 1.3  # so much longer than at its median speed: another program used the cores; seconds are not compared


@dataclass(frozen=True)
class Recipe:
    """``source``: where it is documented. ``settings``: of a config, by number of training rows. ``dev``: whether it
    stops early and keeps the best checkpoint by dev loss."""

    source: str
    settings: Callable[[int], dict[str, Any]]
    dev: bool = False


def epochs_of_openai(rows: int) -> int:
    """3, or more of a tiny file, or fewer of a large one."""
    if rows * 3 < 100:
        return min(25, 100 // rows)
    return max(1, 25_000 // rows) if rows * 3 > 25_000 else 3


def warmup(steps: int, rows: int, batch: int, epochs: int) -> float:
    """A number of warm-up steps as a fraction of all steps."""
    return min(0.5, steps / (epochs * math.ceil(rows / batch)))


def lora(rank: int, alpha: int, **more: Any) -> dict[str, Any]:
    return {"adapter.rank": rank, "adapter.alpha": alpha, **{f"adapter.{k}": v for k, v in more.items()}}


def train(**settings: Any) -> dict[str, Any]:
    return {f"train.{k}": v for k, v in settings.items()}


RECIPES = {
    OURS: Recipe("the plan's automatic choices", lambda n: {}, dev=True),
    "trl": Recipe(
        "TRL, the LoRA command of trl/scripts/sft.py, without packing",
        lambda n: (
            train(lr=2e-4, epochs=1, batch_size=16, schedule="linear", warmup=0.0)
            | lora(32, 16, targets=["q_proj", "v_proj"])
        ),
    ),
    "llama-factory": Recipe(
        "LLaMA-Factory, examples/train_lora/qwen3_lora_sft.yaml",
        lambda n: train(lr=1e-4, epochs=3, batch_size=8, schedule="cosine", warmup=0.1) | lora(8, 16),
    ),
    "axolotl": Recipe(
        "Axolotl, examples/llama-3/lora-1b.yml, without packing",
        lambda n: train(lr=2e-4, epochs=1, batch_size=4, schedule="cosine", warmup=warmup(10, n, 4, 1)) | lora(16, 32),
    ),
    "unsloth": Recipe(
        "Unsloth's notebooks: 60 steps",
        lambda n: (
            train(lr=2e-4, steps=60, batch_size=8, schedule="linear", warmup=5 / 60, weight_decay=0.01) | lora(16, 16)
        ),
    ),
    "openai": Recipe(
        "OpenAI's heuristics: 3 epochs, batches of 0.2% of the rows; its rate is not published: 2e-4",
        lambda n: (
            train(lr=2e-4, epochs=epochs_of_openai(n), batch_size=max(1, round(0.002 * n)), schedule="cosine")
            | lora(16, 16)
        ),
    ),
}


def _seconds(folder: Run, total: float) -> list[float]:
    """Seconds of training after each step, its own dev losses included, at the median speed of all steps: what another
    program on the machine slowed down for a while does not count. ``total``: as measured."""
    lines = [x for x in records.read_lines(folder.metrics, records.METRICS) if isinstance(x, records.StepLine)]
    speed = statistics.median(x.seconds / x.computed for x in lines)
    besides = max(0.0, total - sum(x.seconds for x in lines)) / len(lines)
    return [round(t, 1) for t in itertools.accumulate(speed * x.computed + besides for x in lines)]


def answer(example: Example) -> str:
    return example.target if isinstance(example, Chat) else example.text


class Bench:
    """One task on one model: data, model and template are read once."""

    def __init__(self, task: Task, model: str, root: Path) -> None:
        self.task, self.root, self.model = task, root, model
        self.files = write(task, root / "data")
        self.config = self.configured({})
        self.data = dataset.load(self.config)
        self.run = Run(root / "runs" / task.name)
        make_folder(self.run.path / "data")
        self.inputs = gathering.gather(self.config, self.run, self.data)
        self.models = Models(self.inputs.facts, self.inputs.machine.device)
        self.bytes = sum(len(answer(self.data.examples[i]).encode()) for i in self.inputs.test)

    def configured(self, settings: dict[str, Any]) -> Config:
        fixed = {"prove.evidence": "plain", "prove.few_shot": [], **self.task.settings}
        words = [f"{k}={json.dumps(v)}" for k, v in {**fixed, **self.files, **settings}.items()]
        return configuration.load(None, words, model=self.model)

    def plan(self, settings: dict[str, Any]) -> Plan:
        i = self.inputs
        sizes = RowStats.of(i.rows["train"])
        kind = self.data.task.kind.name
        return planning.make_plan(self.configured(settings), i.facts, sizes, i.machine, kind, i.max_new_tokens)

    def cell(self, recipe: Recipe, seed: int) -> dict[str, Any]:
        """Train once, and score the held-out rows: bits per byte of their answers at the end (ours, also along the
        way), and the task's own metric."""
        rows = self.inputs.rows["train"]
        plan = self.plan({**recipe.settings(len(rows)), "seed": seed})
        folder = Run(self.run.path / "cell")
        shutil.rmtree(folder.path, ignore_errors=True)
        make_folder(folder.checkpoints)
        model = self.models.untrained(plan)
        at = {round(plan.steps * k / POINTS) for k in range(1, POINTS)} if recipe.dev else set[int]()
        reached: dict[int, float] = {}
        started, asked = time.monotonic(), 0.0

        def watch(p: records.StepLine) -> None:
            nonlocal asked
            if p.step in at:
                before = time.monotonic()
                reached[p.step] = round(self.bits(model), 4)
                asked += time.monotonic() - before

        dev = self.inputs.rows["dev"] if recipe.dev else ()
        training = loop.TrainingInputs(model, plan, rows, dev, folder, {})
        done = loop.train(loop.with_precomputed(training), watch)
        wall = time.monotonic() - started - asked
        elapsed = _seconds(folder, wall)
        model.module.eval()
        reached[done.steps] = round(self.bits(model), 4)
        return {
            "seconds": elapsed[-1],
            "steps": done.steps,
            "batch": plan.batch_size,
            "lr": plan.lr,
            "tokens": done.tokens,
            "curve": [(elapsed[step - 1], bits) for step, bits in reached.items()],
            "bits": reached[done.steps],
            "score": self.score(model, plan),
            "minutes": round((time.monotonic() - started) / 60, 2),
            "machine": self.machine(plan),
            "busy": wall > BUSY * elapsed[-1],
        }

    def machine(self, plan: Plan) -> str:
        """Seconds are compared only with those of a machine of the same kind."""
        m = self.inputs.machine
        speed = m.bf16_gflops if plan.dtype == "bfloat16" else m.fp32_gflops
        return f"{plan.dtype}, {round(speed / 100) * 100:.0f} GFLOP/s"

    def base(self) -> dict[str, Any]:
        """The scores of the untrained model."""
        started, plan = time.monotonic(), self.plan({})
        model = self.models.untrained(plan)
        bits, score = round(self.bits(model), 4), self.score(model, plan)
        return {"bits": bits, "score": score, "minutes": round((time.monotonic() - started) / 60, 2)}

    def bits(self, model: LanguageModel) -> float:
        """Bits per byte of the reference answers of the test rows, all together."""
        sequences = list(flat(self.inputs.rows["test"]))
        nats = likelihood.nats(model, sequences, "shared" if self.inputs.facts.packable else "padded")
        return float(np.sum(nats) / math.log(2) / self.bytes)

    def score(self, model: LanguageModel, plan: Plan) -> float | None:
        if self.task.metric != "answers":
            return None
        chat = Answers(self.run, Console(quiet=True), self.data, self.inputs, plan, self.models).answering(model)
        examples = [self.data.examples[i] for i in self.inputs.test]
        return round(mean(score_arm(self.inputs.tuned, examples, self.data.task, chat)), 4)


def filled(
    file_name: str, tasks: Sequence[Task], recipes: Mapping[str, Recipe | None], given: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """The cells of a file in results/, after measuring those that it lacks. A recipe of None: the untrained model.
    ``given``: model, seeds and hours."""
    file, end = HERE / "results" / file_name, time.monotonic() + 3600 * given.hours
    cells: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    benches: dict[str, Bench] = {}
    model = Path(given.model).stem
    for seed in range(given.seeds):
        for task in tasks:
            for name, recipe in recipes.items():
                key = f"{model} {task.name} {name} {seed}"
                if key in cells or time.monotonic() > end or (recipe is None and seed):
                    continue
                if task.name not in benches:
                    benches.clear()  # one model in memory
                    benches[task.name] = Bench(task, given.model, ROOT / model)
                bench = benches[task.name]
                cells[key] = bench.base() if recipe is None else bench.cell(recipe, seed)
                print(key, json.dumps({k: v for k, v in cells[key].items() if k != "curve"}), flush=True)
                file.write_text(json.dumps(cells, indent=0) + "\n", encoding="utf-8")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", default=[], choices=TASKS, metavar="TASK")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--hours", type=float, default=10.0, help="begin no cell after so many")
    parser.add_argument("--aside", action="store_true", help="the tasks kept aside, too")
    given = parser.parse_args()
    tasks = [t for t in TASKS.values() if (t.name in given.only if given.only else given.aside or not t.aside)]
    cells = filled("recipe.json", tasks, {"base": None} | {name: RECIPES[name] for name in given.recipes}, given)
    sources = {name: recipe.source for name, recipe in RECIPES.items()}
    (HERE / "results" / "recipe.md").write_text(recipe_tables.text(cells, TASKS, sources), encoding="utf-8")


if __name__ == "__main__":
    main()
