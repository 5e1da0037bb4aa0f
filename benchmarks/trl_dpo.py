"""TRL's DPOTrainer as a timed process, on pairs that are already tokenized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from subject import Wire
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer
from trl_steps import StepOnRequest, settings, tuned_model


class Tokenized(DPOTrainer):  # type: ignore[misc]
    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


def main() -> None:
    wire = Wire()
    setup = wire.setup
    torch.set_num_threads(setup["threads"])
    rows = json.loads(Path(setup["rows"]).read_text(encoding="utf-8"))
    names = ("prompt", "chosen", "rejected")
    trainer = Tokenized(
        model=tuned_model(setup),
        args=DPOConfig(beta=setup["beta"], max_length=None, **settings(setup)),
        train_dataset=Dataset.from_list([{f"{name}_ids": r[name] for name in names} for r in rows]),
        processing_class=AutoTokenizer.from_pretrained(setup["model"]),
        callbacks=[StepOnRequest(wire)],
    )
    trainer.train()


main()
