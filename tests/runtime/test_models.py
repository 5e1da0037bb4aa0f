"""A module computes with exactly the requested weights, whatever it contained before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from build import Folder, plan_of, tiny_model

from tunewright.core.config import AdapterConfig, Plan
from tunewright.core.errors import RunError
from tunewright.model import adapters
from tunewright.model.facts import Facts, read_facts
from tunewright.model.language_model import LanguageModel
from tunewright.runtime.models import Models
from tunewright.runtime.weights import Weights, base
from tunewright.train import checkpoints

IDS = torch.tensor([[5, 9, 80, 33, 7]])
KINDS = ["lora", "dora", "none"]


def plan(kind: str, seed: int = 3) -> Plan:
    adapter = AdapterConfig(kind=kind, rank=4) if kind != "none" else AdapterConfig(kind="none")  # type: ignore[arg-type]
    return plan_of(adapter=adapter, seed=seed)


def logits(model: LanguageModel) -> torch.Tensor:
    with torch.no_grad():
        actual: torch.Tensor = model.module(IDS, use_cache=False).logits
    return actual


def written(models: Models, plan: Plan, folder: Path, seed: int) -> Weights:
    """Weights as if trained: every trainable tensor is drawn at random."""
    model = models.untrained(plan)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in adapters.trainable(model.module).values():
            p.add_(torch.randn(p.shape, generator=generator) * 0.05)
    file = folder / f"{seed}.safetensors"
    return Weights(plan, file, checkpoints.save_weights(file, adapters.trainable(model.module)))


@pytest.fixture
def facts(model_folder: Folder) -> Facts:
    return read_facts(str(model_folder("llama")))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_an_earlier_training_is_left(kind: str, facts: Facts) -> None:
    models, made = Models(facts, "cpu"), plan(kind)
    for _ in range(2):
        trained = adapters.trainable(models.untrained(made).module)
        assert all(p.grad is None for p in trained.values())
        for p in trained.values():
            p.grad = torch.ones_like(p)


@pytest.mark.parametrize("kind", KINDS)
def test_any_order_of_requests_gives_the_same_logits(kind: str, facts: Facts, tmp_path: Path) -> None:
    """Several weights in turn in one process, and each in a fresh process: equal, bit for bit."""
    shared, made = Models(facts, "cpu"), plan(kind)
    first, second = (written(shared, made, tmp_path, seed) for seed in (1, 2))
    asked = [first, base(made), second, first, base(made), second]
    together = []
    for weights in asked:
        with shared.at(weights) as model:
            together.append(logits(model))
        shared.untrained(plan(kind, seed=9))  # a branch starts training in between
    for weights, actual in zip(asked, together, strict=True):
        with Models(facts, "cpu").at(weights) as model:
            assert torch.equal(logits(model), actual)
    assert not torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[1])


def test_whether_the_base_has_dropout_depends_on_the_method_alone(tmp_path: Path) -> None:
    """Not on what the same process trained before: a branch of fine-tuning may be trained by another."""
    tiny_model("llama", attention_dropout=0.5).save_pretrained(tmp_path)
    models, sft = Models(read_facts(str(tmp_path)), "cpu"), plan("lora")
    pairs = sft.model_copy(update={"method": "dpo"})
    for made, draws in ((pairs, False), (sft, True), (pairs, False)):
        module = models.untrained(made).module.train()
        with torch.no_grad():
            first, second = (module(IDS, use_cache=False).logits for _ in range(2))
        assert torch.equal(first, second) is not draws


def test_a_fresh_adapter_is_the_same_however_often_it_is_asked_for(facts: Facts, tmp_path: Path) -> None:
    for kind in KINDS:
        models, made = Models(facts, "cpu"), plan(kind)
        before = {n: p.clone() for n, p in adapters.trainable(models.untrained(made).module).items()}
        written(models, made, tmp_path, 1)
        after = adapters.trainable(models.untrained(made).module)
        assert all(torch.equal(p, after[n]) for n, p in before.items()), kind


def test_scale_is_part_of_the_weights(facts: Facts, tmp_path: Path) -> None:
    models, made = Models(facts, "cpu"), plan("lora")
    whole = written(models, made, tmp_path, 1)
    half = Weights(made, whole.file, whole.sha256, 0.5)
    with models.at(half) as model:
        scaled = logits(model)
    with models.at(whole) as model:
        assert not torch.equal(logits(model), scaled)
    with models.at(Weights(made, whole.file, whole.sha256, 0.0)) as model:
        off = logits(model)
    with models.at(base(made)) as model:
        assert torch.equal(logits(model), off)
    merged = models.merged(half)
    assert torch.allclose(logits(merged), scaled, atol=1e-5)


def test_a_file_that_training_did_not_write_is_refused(facts: Facts, tmp_path: Path) -> None:
    models, made = Models(facts, "cpu"), plan("lora")
    weights, other = (written(models, made, tmp_path, seed) for seed in (1, 2))
    assert weights.file
    assert other.file
    weights.file.write_bytes(other.file.read_bytes())
    with pytest.raises(RunError, match="RUN_DAMAGED"), models.at(weights):
        pass


def test_weights_in_use_cannot_be_replaced(facts: Facts, tmp_path: Path) -> None:
    models, made = Models(facts, "cpu"), plan("lora")
    first, second = (written(models, made, tmp_path, seed) for seed in (1, 2))
    with pytest.raises(AssertionError, match="in use"), models.at(first), models.at(second):
        pass


def test_the_base_as_it_is_in_its_files_is_asked_beside_a_packed_one(model_folder: Folder) -> None:
    pytest.importorskip("bitsandbytes")
    made = plan("lora")
    rounded, whole = (Models(read_facts(str(model_folder("llama")), how), "cpu") for how in ("nf4", "none"))
    with whole.at(base(made)) as model:
        expected = logits(model)
    for _ in range(2):
        with rounded.at(base(made)) as model:
            assert not torch.equal(logits(model), expected)
        with rounded.at(base(made, full_precision=True)) as model:
            assert torch.equal(logits(model), expected)
