"""Training survives kills at every change of the disk, damaged checkpoints, and signals."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from build import LORA, flip, learner_of, plan_of, process, tiny_model, train_rows, training_of, with_adapter
from safetensors.torch import load_file

from tunewright.core.config import AdapterConfig
from tunewright.core.records import CheckpointState, StepLine
from tunewright.core.run_folder import Run
from tunewright.model import adapters
from tunewright.train import checkpoints, loop

FULL = AdapterConfig(kind="none")
TORTURE = Path(__file__).parent.parent / "torture.py"


def test_a_killed_and_resumed_run_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """The short form of `make torture`."""
    done = process(str(TORTURE), "--kills", "40", "--minutes", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    kills, finished, lost, unequal = map(
        int, re.findall(r"(\d+) kills, \d+ full disks, (\d+) runs, (\d+) lost, (\d+) unequal", done.stdout)[-1]
    )
    assert kills >= 10
    assert finished >= 5
    assert (lost, unequal) == (0, 0)


def state_at(step: int, hashes: dict[str, str]) -> CheckpointState:
    return CheckpointState(step=step, hashes=hashes, best=None, best_step=None, best_sha256=None, stale_evals=0)


def train(folder: Path, steps: int = 6, **settings: Any) -> tuple[list[torch.Tensor], Run]:
    run, plan = Run(folder), plan_of(steps=6, checkpoint_every=2, eval_every=3, **settings)
    folder.mkdir(exist_ok=True)
    model = tiny_model()
    adapters.attach(model, plan.adapter, plan.seed)

    def stop(p: StepLine) -> None:
        if p.step == steps < plan.steps:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        loop.train(training_of(model, plan, train_rows(9), train_rows(3, seed=5), run), stop)
    return [p.detach().clone() for p in adapters.trainable(model).values()], run


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("weights.safetensors", flip),
        ("optimizer.safetensors", flip),
        ("weights.safetensors", lambda f: f.write_bytes(f.read_bytes()[:-9])),
        ("state.json", lambda f: f.write_text("{")),
        ("state.json", lambda f: f.unlink()),
        ("COMPLETE", lambda f: f.write_text("")),
        ("../best-000003.safetensors", flip),
    ],
)
def test_a_damaged_newest_checkpoint_costs_some_steps_and_nothing_else(
    tmp_path: Path, file: str, damage: Callable[[Path], Any]
) -> None:
    straight, _ = train(tmp_path / "straight")
    _, run = train(tmp_path / "stopped", steps=5)
    damage(run.checkpoints / "step-000004" / file)
    actual = checkpoints.newest(run.checkpoints)
    newest, damaged = actual.folder, actual.damaged
    assert newest is not None
    assert newest.name == "step-000002"
    assert len(damaged) == 1
    assert "step-000004" in damaged[0]
    again, _ = train(tmp_path / "stopped")
    assert all(torch.equal(a, b) for a, b in zip(straight, again, strict=True))


@pytest.mark.parametrize("kind", ["lora", "none"])
def test_moments_in_8_bits_are_restored(tmp_path: Path, kind: Any) -> None:
    """Tensors of less than 4,096 numbers keep theirs in float32; a full fine-tuning has some of either kind."""
    pytest.importorskip("bitsandbytes")
    settings = {
        "optimizer": "adamw8",
        "lr": 1e-3,
        "adapter": AdapterConfig(kind=kind, rank=4) if kind == "lora" else FULL,
    }
    last = {}
    for name, steps, more in (
        ("straight", 6, {}),
        ("stopped", 5, {}),
        ("stopped", 6, {}),
        ("wide", 6, {"optimizer": "adamw"}),
    ):
        _, run = train(tmp_path / name, steps, **{**settings, **more})
        last[name] = run.checkpoints / "step-000006"
    moments = load_file(last["straight"] / "optimizer.safetensors")
    assert {value.dtype for key, value in moments.items() if key.endswith("/state1")} == (
        {torch.float32} if kind == "lora" else {torch.float32, torch.uint8}
    )
    straight, resumed, wide = (
        load_file(last[name] / "weights.safetensors") for name in ("straight", "stopped", "wide")
    )
    assert all(torch.equal(resumed[name], weight) for name, weight in straight.items())
    apart = max(float((wide[name] - weight).abs().max()) for name, weight in straight.items())
    assert 0 < apart < 0.01, "close to the optimizer with moments in 32 bits"


def test_the_first_signal_finishes_the_step_and_the_second_stops_at_once() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT
    with loop.interrupts() as asked:
        signal.raise_signal(signal.SIGINT)
        assert asked.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_a_second_sigterm_changes_nothing() -> None:
    """Slurm sends it to torchrun and to its processes, and torchrun passes it on."""
    with loop.interrupts() as asked:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert asked.is_set()


def test_resuming_with_other_inputs_names_what_changed(tmp_path: Any) -> None:
    model = tiny_model()
    adapters.attach(model, LORA, 0)
    student = learner_of(model, plan_of())
    parameters, optimizer = student.parameters, student.optimizer
    checkpoints.save(tmp_path, parameters, optimizer, state_at(4, {"data": "a", "model": "b"}), 2)
    with pytest.raises(Exception, match=r"RESUME_MISMATCH.*data was a, is now x"):
        checkpoints.restore(tmp_path, parameters, optimizer, {"data": "x", "model": "b"})


def test_the_state_of_another_optimizer_is_not_lost_silently(tmp_path: Path) -> None:
    student = learner_of(with_adapter("llama", torch.float32).module, plan_of())
    other = torch.optim.RMSprop(student.parameters.values())
    sum(p.sum() for p in student.parameters.values()).backward()
    other.step()
    with pytest.raises(AssertionError, match="square_avg"):
        checkpoints.save(tmp_path, student.parameters, other, state_at(1, {}), 2)
