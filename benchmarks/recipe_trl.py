"""TRL itself, with the recipe that recipe.py calls trl, on one task: does our engine represent it fairly?

python benchmarks/recipe_trl.py [--task tweets] [--seed 0]      Adds a cell to results/recipe.json; writes recipe.md.

TRL reads the rows as conversations and renders, batches, trains and schedules on its own. What it trained is merged by
PEFT, and scored on the held-out rows as every other cell.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import recipe_tables
import torch
from recipe import HERE, RECIPES, ROOT, Bench
from recipe_tasks import TASKS

from tunewright.data.messages import Chat
from tunewright.model import loading

MODEL = "smollm2-135m"


def conversations(bench: Bench) -> list[dict[str, Any]]:
    rows = []
    for i in bench.data.side("train"):
        example = bench.data.examples[i]
        assert isinstance(example, Chat)
        messages = [{"role": m.role, "content": m.content} for m in example.messages]
        rows.append({"prompt": messages[:-1], "completion": messages[-1:]})
    return rows


def trained(bench: Bench, seed: int, folder: Path) -> dict[str, Any]:
    """Trains with TRL and saves the merged model in ``folder``."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    path = loading.resolve(MODEL)
    settings = RECIPES["trl"].settings(len(bench.inputs.rows["train"]))
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
        args=SFTConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=settings["train.batch_size"],
            learning_rate=settings["train.lr"],
            num_train_epochs=settings["train.epochs"],
            lr_scheduler_type=settings["train.schedule"],
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=seed,
        ),
        train_dataset=Dataset.from_list(conversations(bench)),
        processing_class=AutoTokenizer.from_pretrained(path),
        peft_config=LoraConfig(
            r=settings["adapter.rank"],
            lora_alpha=settings["adapter.alpha"],
            target_modules=settings["adapter.targets"],
            task_type="CAUSAL_LM",
        ),
    )
    started = time.monotonic()
    trainer.train()
    seconds = round(time.monotonic() - started, 1)
    trainer.model.merge_and_unload().save_pretrained(folder / "merged")  # type: ignore[union-attr, operator]
    return {"seconds": seconds, "steps": trainer.state.global_step}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", default="tweets", choices=TASKS)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    bench, started = Bench(TASKS[given.task], MODEL, ROOT / MODEL), time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        cell = trained(bench, given.seed, Path(temporary))
        model = loading.load(Path(temporary) / "merged", torch.float32)
        plan = bench.plan({})
        cell |= {"bits": round(bench.bits(model), 4), "score": bench.score(model, plan), "machine": bench.machine(plan)}
    cell["minutes"] = round((time.monotonic() - started) / 60, 2)
    file = HERE / "results" / "recipe.json"
    cells = json.loads(file.read_text(encoding="utf-8"))
    cells[f"{MODEL} {given.task} {recipe_tables.ITSELF} {given.seed}"] = cell
    print(json.dumps(cell))
    file.write_text(json.dumps(cells, indent=0) + "\n", encoding="utf-8")
    sources = {name: recipe.source for name, recipe in RECIPES.items()}
    (HERE / "results" / "recipe.md").write_text(recipe_tables.text(cells, TASKS, sources), encoding="utf-8")


if __name__ == "__main__":
    main()
