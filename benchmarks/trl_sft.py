"""TRL's SFTTrainer as a timed process."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from datasets import Dataset
from subject import Wire
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer
from trl_steps import StepOnRequest, settings, tuned_model


def main() -> None:
    wire = Wire()
    setup = wire.setup
    torch.set_num_threads(setup["threads"])
    rows = json.loads(Path(setup["rows"]).read_text(encoding="utf-8"))
    trainer = SFTTrainer(
        model=tuned_model(setup),
        args=SFTConfig(max_length=None, **settings(setup)),
        train_dataset=Dataset.from_list([{"input_ids": r["ids"], "labels": r["labels"]} for r in rows]),
        processing_class=AutoTokenizer.from_pretrained(setup["model"]),
        callbacks=[StepOnRequest(wire)],
    )
    trainer.train()


main()
