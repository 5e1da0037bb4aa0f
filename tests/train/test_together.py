"""Several adapters in joint passes: each has the weights, losses and files that it has alone, bit for bit."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from build import plan_of, tiny_lm, train_rows

from tunewright.core.config import AdapterConfig, Plan
from tunewright.core.errors import TrainError
from tunewright.core.records import StepLine
from tunewright.core.run_folder import Run, make_folder, read_lines, sha256
from tunewright.model import adapters, forward, fused_llama, several
from tunewright.model.language_model import LanguageModel
from tunewright.tokens import packing
from tunewright.tokens.sequences import TokenSequence
from tunewright.train import checkpoints, loop, together

COMMON: dict[str, Any] = {"layout": "shared", "kernels": "fused", "steps": 6, "tokens_per_pass": 60, "batch_size": 6}
RECIPES: list[dict[str, Any]] = [
    {"adapter": AdapterConfig(rank=4, alpha=8.0)},
    {"adapter": AdapterConfig(rank=8, alpha=8.0), "seed": 5, "lr": 3e-3},
    {"adapter": AdapterConfig(kind="rslora", rank=2, alpha=4.0), "batch_size": 4, "steps": 5, "layout": "packed"},
]


def plans(**more: Any) -> list[Plan]:
    return [plan_of(**{**COMMON, **recipe, **more}) for recipe in RECIPES]


def inputs(plan: Plan, model: LanguageModel, folder: Path, rows: int = 0) -> loop.TrainingInputs:
    run = Run(folder)
    make_folder(run.checkpoints)
    return loop.TrainingInputs(model, plan, train_rows(13 + rows), train_rows(5, seed=9), run, {"data": "d"})


def models(kind: str, every: list[Plan]) -> list[LanguageModel]:
    base = tiny_lm(kind, torch.bfloat16 if every[0].dtype == "bfloat16" else torch.float32, num_key_value_heads=2)
    copies = []
    for module, plan in zip(several.on_one_base(base.module, len(every)), every, strict=True):
        adapters.attach(module, plan.adapter, plan.seed)
        assert fused_llama.applies(module)
        copies.append(dataclasses.replace(base, module=module, kernels="fused"))
    return copies


def ends(trainings: list[loop.TrainingInputs]) -> list[Any]:
    """Of each: a hash of its weights, and its lines."""
    results = []
    for training in trainings:
        file = training.run.path / "end.safetensors"
        checkpoints.save_weights(file, adapters.trainable(training.model.module))
        lines = [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(training.run.metrics)]
        results.append((sha256(file), lines))
    return results


def alone(kind: str, every: list[Plan], folder: Path) -> list[Any]:
    trainings = trainings_of(kind, every, folder)
    for training in trainings:
        loop.train(training)
    return ends(trainings)


def trainings_of(kind: str, every: list[Plan], folder: Path) -> list[loop.TrainingInputs]:
    return [inputs(p, m, folder / str(i), i) for i, (p, m) in enumerate(zip(every, models(kind, every), strict=True))]


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {}),
        ("qwen3", {"gradient_checkpointing": "layers"}),
        ("mistral", {"dtype": "bfloat16"}),
        ("llama", {"patience": 1, "eval_every": 1, "lr": 0.3, "steps": 9}),
    ],
    ids=["llama", "recomputed", "bfloat16", "some stop early"],
)
def test_each_ends_as_it_does_alone(kind: str, more: dict[str, Any], tmp_path: Path) -> None:
    """Of other ranks, seeds, rates, rows, batches and numbers of steps."""
    every = plans(**more)
    expected = alone(kind, every, tmp_path / "alone")
    trainings = trainings_of(kind, every, tmp_path / "together")
    done = together.train(trainings)
    assert ends(trainings) == expected
    assert len({sha for sha, _ in expected}) == 3
    assert all(isinstance(result, loop.Trained) for result in done)
    if "patience" in more:
        assert len({result.steps for result in done if isinstance(result, loop.Trained)}) > 1


def test_one_that_diverges_is_given_up_and_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    every = plans()
    expected = alone("llama", every, tmp_path / "alone")
    every[1] = every[1].model_copy(update={"lr": 1e30})
    trainings = trainings_of("llama", every, tmp_path / "together")
    first, second, third = together.train(trainings)
    assert isinstance(second, TrainError)
    assert second.code == "TRAIN_NOT_FINITE"
    assert isinstance(first, loop.Trained)
    assert isinstance(third, loop.Trained)
    actual = ends(trainings)
    assert [actual[0], actual[2]] == [expected[0], expected[2]]


def test_they_continue_from_their_own_checkpoints(tmp_path: Path) -> None:
    """Stopped at different steps; one was then trained alone for a while."""
    every = plans()
    expected = alone("llama", every, tmp_path / "alone")
    together.train(trainings_of("llama", every, tmp_path / "together"), until=[4, 2, 4])
    loop.train(trainings_of("llama", every, tmp_path / "together")[1], until=4)
    trainings = trainings_of("llama", every, tmp_path / "together")
    together.train(trainings)
    assert ends(trainings) == expected


def test_passes_are_joined_only_as_far_as_they_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = plans()
    expected = alone("llama", every, tmp_path / "alone")
    joined, plain = list[int](), several.hidden

    def hidden(models: Any, parts: Any, recompute: Any) -> Any:
        joined.append(sum(part.ids_BT.size for part in parts))
        assert len(parts) == 1 or joined[-1] <= COMMON["tokens_per_pass"]
        return plain(models, parts, recompute)

    monkeypatch.setattr(several, "hidden", hidden)
    trainings = trainings_of("llama", every, tmp_path / "together")
    together.train(trainings)
    assert ends(trainings) == expected
    assert joined


@pytest.mark.parametrize("pause", [None, 3])
def test_a_signal_ends_all_after_the_step_with_everything_saved(pause: int | None, tmp_path: Path) -> None:
    """Also if it comes in the last step before a pause: whoever trains on must not."""
    every = plans(checkpoint_every=100)
    expected = alone("llama", every, tmp_path / "alone")

    def interrupt(line: StepLine) -> None:
        if line.step == 3:
            signal.raise_signal(signal.SIGTERM)

    trainings = trainings_of("llama", every, tmp_path / "together")
    with pytest.raises(TrainError, match="RUN_INTERRUPTED"):
        together.train(trainings, interrupt, until=[pause] * 3 if pause else None)
    assert [checkpoints.newest(t.run.checkpoints).step for t in trainings] == [3, 3, 3]
    trainings = trainings_of("llama", every, tmp_path / "together")
    together.train(trainings)
    assert ends(trainings) == expected


def test_one_that_cannot_begin_does_not_end_the_others(tmp_path: Path) -> None:
    every = plans()
    trainings = trainings_of("llama", every, tmp_path)
    with torch.no_grad():
        next(iter(adapters.trainable(trainings[1].model.module).values())).fill_(float("nan"))
    first, second, third = together.train(trainings)
    assert isinstance(second, TrainError)
    assert second.code == "TRAIN_NOT_FINITE"
    assert isinstance(first, loop.Trained)
    assert isinstance(third, loop.Trained)


def test_what_cannot_have_joint_passes_is_of_no_kind() -> None:
    assert len({together.kind_of(plan) for plan in plans()}) == 1
    for more in (
        {"layout": "padded"},
        {"kernels": "transformers"},
        {"method": "distill"},
        {"adapter": AdapterConfig(rank=4, dropout=0.1)},
        {"adapter": AdapterConfig(kind="dora", rank=4)},
        {"adapter": AdapterConfig(kind="none")},
    ):
        assert together.kind_of(plan_of(**{**COMMON, **more})) is None
    assert together.kind_of(plans()[0]) != together.kind_of(plans(dtype="bfloat16")[0])


def test_tokens_that_predict_several_are_split_by_adapter() -> None:
    """More predictions than tokens, and as many of both in all: each still goes through its own adapter."""
    every = plans()[:2]
    both = models("llama", every)
    one = [TokenSequence(tuple(range(5, 16)), (*[0.0] * 10, 1.0), 0)]
    many = [TokenSequence((5, 6, n), (0.0, 0.0, 1.0), n) for n in range(7, 18)]
    parts = [packing.to_microbatch(own, "shared") for own in (one, many)]
    assert [(part.ids_BT.size, len(part.at_N)) for part in parts] == [(10, 1), (2, 11)]
    for part, model, hidden in zip(parts, both, several.hidden(both, parts, "none"), strict=True):
        assert torch.equal(hidden, forward.hidden(model, part))
