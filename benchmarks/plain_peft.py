"""transformers + PEFT in a loop of a dozen lines, as a careful engineer would write it, as a timed process."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from subject import Wire, serve
from transformers import AutoModelForCausalLM


def padded(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    width = max(len(r["ids"]) for r in rows)
    return {
        "input_ids": torch.tensor([r["ids"] + [0] * (width - len(r["ids"])) for r in rows]),
        "attention_mask": torch.tensor([[1] * len(r["ids"]) + [0] * (width - len(r["ids"])) for r in rows]),
        "labels": torch.tensor([r["labels"] + [-100] * (width - len(r["ids"])) for r in rows]),
    }


def main() -> None:
    wire = Wire()
    setup = wire.setup
    torch.set_num_threads(setup["threads"])
    rows = json.loads(Path(setup["rows"]).read_text(encoding="utf-8"))
    dtype = torch.bfloat16 if setup["dtype"] == "bfloat16" else torch.float32
    base = AutoModelForCausalLM.from_pretrained(setup["model"], dtype=dtype, use_cache=False)
    model: Any = PeftModel.from_pretrained(base, setup["adapter"], is_trainable=True).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=setup["lr"], weight_decay=0.0)
    batch, micro = setup["batch"], setup.get("micro", setup["batch"])
    cast = torch.autocast("cpu", torch.bfloat16) if setup.get("autocast") else contextlib.nullcontext()

    def step(number: int) -> float:
        chosen = [rows[(number * batch + i) % len(rows)] for i in range(batch)]
        labelled = sum(label != -100 for r in chosen for label in r["labels"][1:])
        optimizer.zero_grad()
        total = 0.0
        for start in range(0, batch, micro):
            with cast:
                loss = model(**padded(chosen[start : start + micro]), num_items_in_batch=torch.tensor(labelled)).loss
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return total

    with cast:
        model(**padded([{"ids": list(range(8)), "labels": list(range(8))}])).loss.backward()
    serve(step, wire)


main()
