"""Order and state: a resumed run equals one that was never stopped."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from build import plan_of, tiny_model, train_rows, training_of

from faults import Fault, Patch
from tunewright.core.config import AdapterConfig
from tunewright.core.records import StepLine
from tunewright.core.run_folder import Run, read_lines
from tunewright.model import adapters
from tunewright.tokens import packing
from tunewright.train import loop, step


class Stopped(Exception):
    pass


def as_if_never_stopped() -> None:
    """Dropout, shuffling and accumulation, stopped after every step (`torture.py` is the full version)."""
    adapter = AdapterConfig(rank=4, dropout=0.3)
    plan = plan_of(steps=5, adapter=adapter, tokens_per_pass=40, checkpoint_every=1, lr=1e-3)

    def go(folder: Path, stop: int | None = None) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
        folder.mkdir(exist_ok=True)
        model = tiny_model()
        adapters.attach(model, adapter, plan.seed)
        torch.manual_seed(hash(str(folder)) % 1000)  # another process has another random stream

        def watch(p: StepLine) -> None:
            if p.step == stop:
                raise Stopped

        try:
            loop.train(training_of(model, plan, train_rows(7), train_rows(2, seed=5), Run(folder)), watch)
        except Stopped:
            return go(folder)
        lines = [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(Run(folder).metrics)]
        return [p.detach().clone() for p in adapters.trainable(model).values()], lines

    with tempfile.TemporaryDirectory() as root:
        straight = go(Path(root) / "straight")
        for stop in range(1, 5):
            again = go(Path(root) / f"stopped-{stop}", stop)
            assert again[1] == straight[1]
            assert all(torch.equal(a, b) for a, b in zip(straight[0], again[0], strict=True))


def one_stream_of_chance(patch: Patch) -> None:
    """As in most trainers: dropout continues from the current state of the process's random stream."""
    patch.setattr(step.torch, "manual_seed", lambda _: None)


def every_epoch_has_its_order() -> None:
    epochs = [[tuple(packing.step_rows(12, 4, 3, s)) for s in range(3 * e, 3 * e + 3)] for e in range(3)]
    assert len({str(e) for e in epochs}) == 3
    for epoch in epochs:
        assert Counter(i for step in epoch for i in step) == Counter(range(12))
    assert packing.step_rows(12, 4, 4, 0) != packing.step_rows(12, 4, 3, 0)


def one_order_for_all(patch: Patch) -> None:
    plain = packing.step_rows
    patch.setattr(
        packing, "step_rows", lambda count, batch, seed, step: plain(count, batch, seed, step % -(-count // batch))
    )


FAULTS = [
    Fault(21, "a resumed run has other random numbers, rows or learning rates", "transformers, Accelerate, Megatron-Bridge, ms-swift, all in 2026",
          "row order, learning rate and dropout are functions of (seed, step): a run that is stopped after any step and resumed ends "
          "as if it had never been stopped, bit for bit",
          as_if_never_stopped, one_stream_of_chance),
    Fault(22, "every epoch or worker repeats the same order", "", "each epoch contains every row once, in its own order", every_epoch_has_its_order, one_order_for_all),
]  # fmt: skip
