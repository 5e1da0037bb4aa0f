"""transformers' class for sequence classification with a LoRA adapter of PEFT, trained by transformers' Trainer, as a
timed process, on prompts that are already tokenized."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from datasets import Dataset
from subject import Wire
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)
from trl_steps import StepOnRequest, settings, tuned_model


def main() -> None:
    wire = Wire()
    setup = wire.setup
    torch.set_num_threads(setup["threads"])
    rows = json.loads(Path(setup["rows"]).read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(setup["model"])
    labels = sorted({r["class"] for r in rows})
    made = [{"input_ids": r["ids"], "labels": labels.index(r["class"])} for r in rows]
    shape = {"num_labels": len(labels), "pad_token_id": tokenizer.pad_token_id}
    trainer = Trainer(
        model=tuned_model(setup, AutoModelForSequenceClassification, **shape),
        args=TrainingArguments(**settings(setup)),
        train_dataset=Dataset.from_list([{**r, "attention_mask": [1] * len(r["input_ids"])} for r in made]),
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[StepOnRequest(wire, torch.tensor([0]))],
    )
    trainer.train()


main()
