"""tunewright as a timed process: its own loop's step, on rows that are already tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from subject import Wire, serve
from workloads import rendered

from tunewright.core.config import AdapterConfig, Plan
from tunewright.methods import sft
from tunewright.model import adapters, fused_llama, loading, peft_format
from tunewright.tokens import packing
from tunewright.tokens.packing import Batch
from tunewright.tokens.sequences import Rendered
from tunewright.train import loop, machine


def plan_of(setup: dict[str, Any], rows: list[Rendered]) -> Plan:
    return Plan(
        rows=len(rows),
        supervised_tokens=0,
        tokens=sum(len(r.ids) for r in rows),
        steps=1000,
        epochs=1.0,
        batch_size=setup["batch"],
        tokens_per_pass=setup.get("capacity", 8192),
        max_length=8192,
        layout=setup["layout"],
        kernels="fused",
        gradient_checkpointing=setup.get("recompute", "none"),
        dtype=setup["dtype"],
        lr=setup["lr"],
        schedule="constant",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        eval_every=1000,
        patience=0,
        checkpoint_every=1000,
        checkpoint_keep=1,
        adapter=AdapterConfig(rank=16, alpha=32.0),
        seed=0,
        threads=setup["threads"],
        reasons={},
    )


class AllLogits:
    """For the ablation: the way of most systems, in which the head multiplies every token, labelled or not."""

    batches = staticmethod(sft.batches)

    @staticmethod
    def loss(model: Any, batch: Batch, plan: Plan) -> tuple[torch.Tensor, float]:
        logits_BTV = loading.run(model, model, batch, plan.gradient_checkpointing).logits.float()
        flat_N = torch.from_numpy(batch.row_N * batch.ids_BT.shape[1] + batch.at_N)
        target_BT = torch.full(batch.ids_BT.shape, -100).flatten()
        target_BT[flat_N] = torch.from_numpy(batch.target_N)
        total = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), target_BT, reduction="sum")
        return total, float(batch.weight_N.sum())


def main() -> None:
    wire = Wire()
    setup = wire.setup
    machine.keep_pages()
    torch.set_num_threads(setup["threads"])
    rows = rendered(json.loads(Path(setup["rows"]).read_text(encoding="utf-8")))
    # Rows go in the order of the file, as with the peers.
    packing.step_rows = lambda count, batch, seed, step: [(step * batch + i) % count for i in range(batch)]  # type: ignore[assignment]
    plan = plan_of(setup, rows)
    model = loading.load(setup["model"], loading.torch_dtype(plan.dtype))
    adapters.attach(model, plan.adapter, setup.get("seed", 0))
    model.lean = setup.get("lean", True) and fused_llama.applies(model)
    parameters = adapters.trainable(model)
    if "save_adapter" in setup:
        peft_format.save(model, plan.adapter, Path(setup["save_adapter"]), str(setup["model"]), {})
    optimizer = loop.make_optimizer(parameters, plan)
    method: Any = AllLogits if setup.get("all_logits") else sft
    loop.calibrate(model, method, rows[:2], plan)
    serve(lambda step: loop.take_step(model, method, rows, plan, step, optimizer, parameters).loss, wire)


main()
