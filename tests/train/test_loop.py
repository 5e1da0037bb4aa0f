"""An interrupted run ends like one that was not, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from build import (
    plan_of,
    tiny_model,
    train_rows,
)

from tunewright.core.config import AdapterConfig
from tunewright.core.records import CheckpointState, StepLine, write_lines
from tunewright.core.run_folder import Run, read_lines
from tunewright.core.run_folder import create as new_run
from tunewright.model import adapters, language_model
from tunewright.train import loop
from tunewright.train.loop import TrainingInputs


class Killed(Exception):
    pass


CONFIGS = {
    "lora": AdapterConfig(kind="lora", rank=4, dropout=0.2),
    "none": AdapterConfig(kind="none"),
    "pissa": AdapterConfig(rank=4, init="pissa"),
    "lokr": AdapterConfig(kind="peft:lokr", rank=4),
}


@pytest.mark.parametrize("kind", ["lora", "none", "pissa", pytest.param("lokr", marks=pytest.mark.slow)])
def test_interrupted_equals_uninterrupted(tmp_path: Any, kind: str) -> None:
    """Weights, losses and metrics after a stop at any step, with dropout, accumulation and shuffling: bit for bit."""

    config = CONFIGS[kind]
    plan = plan_of(steps=6, adapter=config, tokens_per_pass=40, checkpoint_every=1, lr=1e-3)
    data, dev = train_rows(9), train_rows(3, seed=5)

    def go(name: str, stop: int | None) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
        run = new_run(tmp_path, name, "x") if not (tmp_path / name).exists() else Run(tmp_path / name)
        model = tiny_model()
        adapters.attach(model, config, plan.seed)

        def stopping(p: StepLine) -> None:
            if p.step == stop:
                raise Killed

        loop.train(TrainingInputs(language_model.of(model), plan, data, dev, run, {"data": "d"}), stopping)
        lines = [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(run.metrics)]
        return [p.detach().clone() for p in adapters.trainable(model).values()], lines

    weights, lines = go("straight", None)
    for stop in range(1, 6) if kind in ("lora", "none") else [3]:
        with pytest.raises(Killed):
            go(f"stopped-{stop}", stop)
        again, again_lines = go(f"stopped-{stop}", None)
        assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
        assert again_lines == lines


def test_a_continued_training_took_what_all_its_processes_took(tmp_path: Any) -> None:
    run = Run(tmp_path)
    state = CheckpointState(step=3, hashes={}, best=None, best_step=None, best_sha256=None, stale_evals=0)
    line = StepLine(step=1, loss=1.0, lr=0.1, grad_norm=1.0, tokens=1, computed=1, supervised=1.0, seconds=30.0)
    write_lines(run.metrics, [line.model_copy(update={"step": step}) for step in (1, 2, 3)])
    training = TrainingInputs(language_model.of(tiny_model()), plan_of(steps=3), [], [], run, {})
    student: Any = None  # read only where a dev loss has chosen a step
    for last, expected in ((31.0, 90.0), (95.0, 95.0)):  # the last step alone; all of them, and dev losses
        assert loop.finished(training, student, state, last).seconds == expected
