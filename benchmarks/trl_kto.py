"""TRL's KTOTrainer as a timed process, on rated rows that are already tokenized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from subject import Wire
from transformers import AutoTokenizer
from trl import KTOConfig, KTOTrainer
from trl_steps import StepOnRequest, settings, tuned_model


class Tokenized(KTOTrainer):  # type: ignore[misc]
    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


def rated(rows: list[dict[str, Any]], passed: int) -> Dataset:
    """Of each row, also the answer that z0 is estimated from: as in KTOTrainer's own preparation, that of the row
    before it among the ``passed`` rows of a pass."""
    made = []
    for start in range(0, len(rows), passed):
        part = rows[start : start + passed]
        for n, row in enumerate(part):
            ids = {"prompt_ids": row["prompt"], "completion_ids": row["completion"]}
            made.append({**ids, "KL_completion_ids": part[n - 1]["completion"], "label": row["desirable"]})
    return Dataset.from_list(made)


def main() -> None:
    wire = Wire()
    setup = wire.setup
    torch.set_num_threads(setup["threads"])
    rows = json.loads(Path(setup["rows"]).read_text(encoding="utf-8"))
    given = settings(setup)
    trainer = Tokenized(
        model=tuned_model(setup),
        args=KTOConfig(beta=setup["beta"], max_length=None, **given),
        train_dataset=rated(rows, given["per_device_train_batch_size"]),
        processing_class=AutoTokenizer.from_pretrained(setup["model"]),
        callbacks=[StepOnRequest(wire)],
    )
    trainer.train()


main()
