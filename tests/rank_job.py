"""Trains tiny models with `loop.train` as one of several processes: ``python tests/rank_job.py FOLDER CASE...``.

Prints, as JSON by case, a hash of the weights and the lines of metrics.jsonl. The world comes from the environment, as
torchrun sets it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from build import plan_of, tiny_lm, train_rows
from torch.distributed.tensor import DTensor

from tunewright.core.config import AdapterConfig
from tunewright.core.records import StepLine
from tunewright.core.run_folder import Run, make_folder, read_lines
from tunewright.model import adapters, fused_llama
from tunewright.model.frozen import packing
from tunewright.train import loop, ranks, sharded

PLAN: dict[str, Any] = {"steps": 5, "batch_size": 6, "tokens_per_pass": 60, "checkpoint_every": 2, "lr": 1e-2}
CASES: dict[str, dict[str, Any]] = {
    "shared": {"layout": "shared"},
    "padded": {"layout": "padded"},
    "dropout": {"layout": "packed", "adapter": AdapterConfig(rank=4, dropout=0.2)},
    "dora": {"layout": "shared", "adapter": AdapterConfig(kind="dora", rank=4)},
    "recomputed": {"layout": "shared", "kernels": "fused", "gradient_checkpointing": "layers"},
    "bfloat16": {"layout": "shared", "dtype": "bfloat16", "kernels": "fused"},
    "nf4": {"layout": "shared", "kernels": "fused"},
    "fsdp": {"layout": "shared", "kernels": "fused", "fsdp": True, "tokens_per_pass": 100},
    "fsdp recomputed": {
        "layout": "shared",
        "kernels": "fused",
        "gradient_checkpointing": "layers",
        "fsdp": True,
        "lr": 2e-2,
    },
    "fsdp padded": {"layout": "padded", "fsdp": True, "lr": 3e-2},
    "fsdp padded, fused": {"layout": "padded", "kernels": "fused", "fsdp": True, "lr": 4e-2},
    "fsdp nf4": {"layout": "shared", "kernels": "fused", "fsdp": True},
    "clipped": {"layout": "shared", "max_grad_norm": 0.05, "patience": 1, "eval_every": 1, "steps": 12, "lr": 0.5},
    "one pass": {"layout": "shared", "tokens_per_pass": 100_000},
}


def require_shards(module: torch.nn.Module, world: int) -> None:
    """Fails unless this process has only its part of the frozen layers."""
    frozen = [p for n, p in module.named_parameters() if "lora" not in n and "embed" not in n and "head" not in n]
    parts = [p for p in frozen if isinstance(p, DTensor)]
    assert len(parts) >= len(frozen) - 1, "all but the last norm"
    assert sum(p.to_local().numel() for p in parts) < 1.1 * sum(p.numel() for p in parts) / world


def trained(folder: Path, name: str, together: ranks.Ranks, stop: int | None = None) -> dict[str, Any]:
    settings = {**PLAN, "adapter": AdapterConfig(rank=4), **CASES[name]}
    plan = plan_of(**settings)
    dtype = torch.bfloat16 if plan.dtype == "bfloat16" else torch.float32
    model = tiny_lm("llama", dtype, num_key_value_heads=2)
    if name.endswith("nf4"):
        packing.pack(model.module, "nf4", dtype)
    adapters.attach(model.module, plan.adapter, plan.seed)
    if plan.kernels == "fused":
        import dataclasses

        assert fused_llama.applies(model.module)
        model = dataclasses.replace(model, kernels="fused")
    if plan.fsdp and together.world > 1:
        model = sharded.sharded(model, together, "cpu")
        require_shards(model.module, together.world)
        first, *others = model.decoder.layers
        for layer in others:  # where a later one computes, the weights of the first are gone again
            layer.register_forward_pre_hook(lambda *_: require_shards(first, together.world))
    run = Run(folder / name.replace(" ", "-"))
    if together.first:
        make_folder(run.checkpoints)
    together.wait()

    def progress(p: StepLine) -> None:
        if p.step == stop:
            sys.exit(9)  # after this step's line, before its checkpoint

    inputs = loop.TrainingInputs(model, plan, train_rows(13), train_rows(7, seed=5), run, {"data": "d"})
    done = loop.train(inputs, progress, together)
    if plan.fsdp and together.world > 1:
        require_shards(model.module, together.world)
    weights = hashlib.sha256()
    for parameter in adapters.trainable(model.module).values():
        weights.update(parameter.detach().numpy().tobytes())
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(run.metrics)]
    return {"weights": weights.hexdigest(), "steps": done.steps, "best": done.best_step, "lines": lines}


def main(folder: str, *names: str) -> None:
    torch.set_num_threads(1)
    stop = None
    if names[0].isdigit():
        stop, names = int(names[0]), names[1:]
    with ranks.joined() as together:
        results = {name: trained(Path(folder), name, together, stop) for name in names}
    sys.stdout.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
