"""A trainer of TRL as a timed process: a callback makes it wait before each of its own steps."""

from __future__ import annotations

import time
from typing import Any

import torch
from peft import PeftModel
from subject import Wire
from transformers import AutoModelForCausalLM, TrainerCallback


class StepOnRequest(TrainerCallback):
    """``labels``: of the eight tokens that warm up."""

    def __init__(self, wire: Wire, labels: torch.Tensor | None = None) -> None:
        self.wire, self.start, self.seconds = wire, 0.0, 0.0
        self.labels = torch.arange(8)[None] if labels is None else labels

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        model = more["model"]
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            model(input_ids=torch.arange(8)[None], labels=self.labels).loss.backward()
        model.zero_grad()
        self.wire.send(ready=True)

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if not self.wire.wait():
            raise SystemExit(0)
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.seconds = time.perf_counter() - self.start

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        if logs and "loss" in logs:
            self.wire.send(loss=float(logs["loss"]), seconds=self.seconds)


def tuned_model(setup: dict[str, Any], kind: Any = AutoModelForCausalLM, **more: Any) -> Any:
    """The base with the adapter that all systems begin with."""
    dtype = torch.bfloat16 if setup["dtype"] == "bfloat16" else torch.float32
    base = kind.from_pretrained(setup["model"], dtype=dtype, **more)
    return PeftModel.from_pretrained(base, setup["adapter"], is_trainable=True)


def settings(setup: dict[str, Any]) -> dict[str, Any]:
    """Of a trainer: rows in the order of the file, a constant rate, and what the setup adds. TRL's trainers compute in
    bfloat16 unless the setup has ``bf16`` false."""
    return {
        "output_dir": setup["folder"],
        "per_device_train_batch_size": setup.get("micro", setup["batch"]),
        "gradient_accumulation_steps": setup["batch"] // setup.get("micro", setup["batch"]),
        "learning_rate": setup["lr"],
        "lr_scheduler_type": "constant",
        "max_steps": 1000,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        **setup.get("settings", {}),
    }
