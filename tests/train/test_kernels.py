"""Which kernels a plan has, on a processor and on a GPU, and what becomes of kernels that compute something else."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention
from train.test_selftest import run, world

from tunewright.core import config
from tunewright.core.errors import ConfigError
from tunewright.model.attention import flex
from tunewright.model.facts import Facts, read_facts
from tunewright.system.machine import Machine
from tunewright.train import planning
from tunewright.train.recipe import RowStats

CPU = Machine("cpu", 2, 24.0, 20.0, 300.0, 600.0, "processor")
GPU = Machine("cuda", 16, 141.0, 140.0, 50_000.0, 700_000.0, "GPU")
SIZES = RowStats(rows=800, tokens=160_000, supervised=20_000, longest=400)


@pytest.fixture
def facts(model_folder: Any) -> Facts:
    return dataclasses.replace(read_facts(str(model_folder("llama"))), head_width=64, heads=14, hidden=896, layers=24)


def plan(facts: Facts, machine: Machine, *words: str) -> Any:
    chosen = config.load(None, ["data.train=rows.csv", *words])
    return planning.make_plan(chosen, facts, SIZES, machine, "label", 8)


def test_flex_attention_is_compiled_on_a_gpu_where_the_steps_win_it_back(facts: Facts) -> None:
    assert plan(facts, GPU).kernels == "flex"
    assert plan(facts, GPU, "train.layout=padded").kernels == "fused"
    with pytest.raises(ConfigError, match=r"CONFIG_CONFLICT.*keep dense weights"):
        plan(dataclasses.replace(facts, packed="nf4"), GPU, "train.kernels=compiled")
    assert plan(facts, GPU, "train.steps=20").kernels == "fused"
    assert plan(facts, CPU).kernels == "fused"
    assert plan(dataclasses.replace(facts, head_width=80), GPU).kernels == "fused"
    assert plan(dataclasses.replace(facts, fused=False), GPU).kernels == "transformers"


@pytest.mark.parametrize("words", [["adapter.dropout=0.1"], ["adapter.kind=dora"], ["adapter.kind=none"]])
def test_memory_is_planned_for_the_kernels_that_compute(words: list[str], facts: Facts) -> None:
    """The fused kernels, which keep half as much of a token, are for plain LoRA."""
    small = dataclasses.replace(CPU, memory_gb=4.0)
    planned, fused = plan(facts, small, *words), plan(facts, small)
    assert (planned.kernels, fused.kernels) == ("transformers", "fused")
    assert planned.tokens_per_pass < fused.tokens_per_pass or planned.gradient_checkpointing == "layers"
    for machine in (small, GPU):
        with pytest.raises(ConfigError, match=r"CONFIG_CONFLICT.*plain LoRA, without dropout"):
            plan(facts, machine, "train.kernels=fused", *words)


def test_what_is_kept_in_shards_is_a_frozen_base_in_memory(facts: Facts) -> None:
    assert plan(facts, GPU, "train.fsdp=true").fsdp
    for other, words, message in (
        (facts, ["adapter.kind=none"], "all of the base is trained"),
        (dataclasses.replace(facts, packed="stored"), ["quantise=stored"], "the base stays in its files"),
        (facts, ["train.kernels=compiled"], "keep dense weights"),
    ):
        with pytest.raises(ConfigError, match=f"CONFIG_CONFLICT.*{message}"):
            plan(other, CPU if "stored" in words[0] else GPU, "train.fsdp=true", *words)


@pytest.mark.parametrize("asked", ["flex", "compiled"])
def test_flex_attention_without_a_gpu_is_refused(asked: str, facts: Facts) -> None:
    with pytest.raises(ConfigError, match=f"CONFIG_CONFLICT.*train.kernels={asked}.*needs a GPU"):
        plan(facts, CPU, f"train.kernels={asked}")
    if asked == "flex" or flex.compiles_layers():
        assert plan(facts, GPU, f"train.kernels={asked}").kernels == asked


def test_a_torch_that_loses_gradients_compiles_no_layers(facts: Facts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    with pytest.raises(ConfigError, match=r"CONFIG_CONFLICT.*torch before 2.13 loses gradients"):
        plan(facts, GPU, "train.kernels=compiled")
    assert plan(facts, GPU).kernels == "flex"


def test_a_gpu_uses_its_memory_and_keeps_no_attention_weights(facts: Facts) -> None:
    """On a GPU of 24 GB, a pass has more tokens than on a machine with as much memory."""
    small = dataclasses.replace(GPU, memory_gb=24.0)
    with_flex, plain = (plan(facts, small, f"train.kernels={k}") for k in ("flex", "fused"))
    per_token = [planning.bytes_per_token(facts, SIZES, "bfloat16", p.kernels, "none") for p in (with_flex, plain)]
    head = 4 * facts.vocabulary * SIZES.supervised / SIZES.tokens
    assert per_token[0] - head == (per_token[1] - head - 2 * facts.layers * facts.heads * SIZES.longest) * 9 / 8
    assert with_flex.tokens_per_pass > 3 * plan(facts, CPU).tokens_per_pass
    assert with_flex.dtype == "bfloat16"


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("planted", [False, True])
def test_flex_attention_that_sees_other_rows_falls_back(planted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex, "kernel", lambda: flex.eager_kernel)
    if planted:
        plain = flex.layout

        def everyone(segments: Any, position_T: Any) -> flex.TreeLayout:
            laid = plain(segments, position_T)
            return dataclasses.replace(laid, end_T=torch.full((len(laid.end_T),), len(laid.end_T)).int().numpy())

        monkeypatch.setattr(flex, "layout", everyone)
    model, examples, rows, given = world(kernels="flex")
    done = run(model, examples, rows, given)
    assert done.plan.kernels == ("fused" if planted else "flex")
    assert done.checks[-1].passed is not planted
    if planted:
        assert "FlexAttention: loss" in done.plan.reasons["kernels"]


def test_a_kernel_that_cannot_be_compiled_here_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel() -> Any:
        raise RuntimeError("no C compiler\nand a long trace")

    monkeypatch.setattr(flex, "kernel", kernel)
    model, examples, rows, given = world(kernels="flex")
    done = run(model, examples, rows, given)
    assert done.plan.kernels == "fused"
    assert "FlexAttention: RuntimeError: no C compiler" in done.plan.reasons["kernels"]
    assert not done.checks[-1].passed
