"""The step is the step: against hand computation, against transformers + PEFT + AdamW, and against itself in other layouts."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from build import LORA, plan_of, rows, steps, tiny_config, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core.config import AdapterConfig
from tunewright.methods import sft
from tunewright.model import adapters, arch_probe, loading, losses
from tunewright.tokens import packing
from tunewright.train import checkpoints, loop


def test_loss_by_hand() -> None:
    """Softmax, logarithm and shift written out in numpy."""
    model, row = tiny_model(dtype=torch.float64), rows(1)[0]
    with torch.no_grad():
        logits = model(torch.tensor([row.ids])).logits[0].numpy()
    by_hand = 0.0
    for t in range(1, len(row.ids)):
        if row.weights[t]:
            z = logits[t - 1]
            by_hand -= z[row.ids[t]] - (z.max() + math.log(np.exp(z - z.max()).sum()))
    total, weight = loading.loss(model, packing.to_batch([row], "packed"))
    assert weight == row.supervised
    assert abs(float(total) - by_hand) < 1e-9


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "none"])
def test_five_steps_equal_transformers_peft_and_adamw(kind: str) -> None:
    """Plain padded batches, PEFT's layers, torch's clip and AdamW, our schedule by its formula: float64, within 1e-9."""
    import peft

    data = rows(12)
    config = AdapterConfig(kind=kind, rank=4, alpha=8.0) if kind != "none" else AdapterConfig(kind="none")
    plan = plan_of(adapter=config, weight_decay=0.1, lr=1e-2 if kind != "none" else 1e-3)
    ours = tiny_model(dtype=torch.float64)
    adapters.attach(ours, config, plan.seed)
    theirs = tiny_model(dtype=torch.float64)
    if kind != "none":
        theirs = peft.get_peft_model(
            theirs,
            peft.LoraConfig(
                r=4,
                lora_alpha=8,
                target_modules=sorted(adapters.adapted(ours)),
                use_rslora=kind == "rslora",
                use_dora=kind == "dora",
            ),
            autocast_adapter_dtype=False,
        )
        with torch.no_grad():
            for name, layer in adapters.adapted(ours).items():
                their = theirs.get_submodule(f"base_model.model.{name}")
                for mine, its in ((layer.lora_A, their.lora_A.default), (layer.lora_B, their.lora_B.default)):
                    its.weight.data = mine.detach().clone()
                if kind == "dora":
                    their.lora_magnitude_vector.default.weight.data = layer.magnitude.detach().clone()
    else:
        theirs.requires_grad_(True)
    found = steps(ours, data, plan)
    parameters = [p for p in theirs.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=plan.lr)
    expected = []
    for step in range(plan.steps):
        chosen = [data[i] for i in packing.step_rows(len(data), plan.batch, plan.seed, step)]
        width = max(len(r.ids) for r in chosen)
        ids = torch.tensor([[*r.ids, *[0] * (width - len(r.ids))] for r in chosen])
        labels = torch.tensor(
            [[*(i if w else -100 for i, w in zip(r.ids, r.weights, strict=True)), *[-100] * (width - len(r.ids))] for r in chosen]
        )
        mask = torch.tensor([[1] * len(r.ids) + [0] * (width - len(r.ids)) for r in chosen])
        logits = theirs(input_ids=ids, attention_mask=mask).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, plan.clip)
        done = (step - 2) / 2
        rate = plan.lr * (step + 1) / 2 if step < 2 else plan.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        expected.append(float(loss.detach()))
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 1e-9
    if kind != "none":
        name, layer = next(iter(adapters.adapted(ours).items()))
        assert torch.allclose(
            layer.lora_B, theirs.get_submodule(f"base_model.model.{name}").lora_B.default.weight, atol=1e-9, rtol=0
        )
    assert found[-1] < found[0]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text"])
def test_a_row_alone_equals_the_row_packed_and_padded(kind: str) -> None:
    """Loss and gradients, for three architectures (one with sliding windows shorter than the rows)."""
    data = rows(6, longest=40)
    gradients, totals = [], []
    for layout, groups in (("alone", [[r] for r in data]), ("packed", [data]), ("padded", [data])):
        model = tiny_model(kind, dtype=torch.float64)
        adapters.attach(model, LORA, 1)
        for p in adapters.trainable(model).values():
            torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(p.numel()))
        total = sum(
            (loading.loss(model, packing.to_batch(g, "padded" if layout == "padded" else "packed"))[0] for g in groups),
            torch.zeros((), dtype=torch.float64),
        )
        total.backward()
        totals.append(float(total.detach()))
        gradients.append(torch.cat([p.grad.flatten() for p in adapters.trainable(model).values()]))
    for total, gradient in zip(totals[1:], gradients[1:], strict=True):
        assert abs(total - totals[0]) < 1e-8 * totals[0]
        assert torch.allclose(gradient, gradients[0], atol=1e-8 * float(gradients[0].abs().max()), rtol=0)


def test_another_row_in_the_pack_changes_nothing() -> None:
    model = tiny_model(dtype=torch.float64)
    first, second, third = rows(3)
    logits = [loading.forward(model, packing.to_batch([first, other], "packed"))[: first.supervised] for other in (second, third)]
    assert torch.equal(logits[0], logits[1]) or torch.allclose(logits[0], logits[1], atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (
            "mamba2",
            {
                "hidden_size": 32,
                "num_heads": 8,
                "head_dim": 8,
                "expand": 2,
                "n_groups": 1,
                "state_size": 8,
                "num_hidden_layers": 2,
                "vocab_size": 260,
            },
        ),
        (
            "qwen3_next",
            {
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 4,
                "linear_key_head_dim": 8,
                "linear_value_head_dim": 8,
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 16,
                "shared_expert_intermediate_size": 16,
                "layer_types": ["linear_attention", "full_attention"],
                "head_dim": 8,
            },
        ),
    ],
)
def test_an_architecture_that_leaks_is_found_by_the_probe(kind: str, shape: dict[str, Any]) -> None:
    assert all(arch_probe.probe(tiny_config(kind, **shape)).leak.values())


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text"])
def test_architectures_that_do_not_leak_pass_the_probe(kind: str) -> None:
    assert arch_probe.probe(tiny_config(kind)) == arch_probe.Capabilities(
        {"shared": "", "packed": ""}, draws=False, lean=kind != "gemma3_text"
    )


def test_a_leaking_architecture_trains_padded_and_equals_rows_alone() -> None:
    shape = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention"],
        "head_dim": 8,
    }
    model, data = tiny_model("qwen3_next", **shape), rows(4)
    with torch.no_grad():
        alone = sum(float(loading.loss(model, packing.to_batch([r], "padded"))[0]) for r in data)
        padded = float(loading.loss(model, packing.to_batch(data, "padded"))[0])
    assert abs(alone - padded) < 1e-4 * alone


@pytest.mark.parametrize("kind", ["lora", "none"])
def test_accumulation_does_not_change_the_gradient(kind: str) -> None:
    """One pass of eight ragged rows = eight passes of one (a mean of means would not be)."""
    config = AdapterConfig(kind=kind, rank=4) if kind == "lora" else AdapterConfig(kind="none")
    losses_, weights = [], []
    for capacity in (4096, 16):
        model = tiny_model(dtype=torch.float64)
        adapters.attach(model, config, 0)
        losses_.append(steps(model, rows(8), plan_of(batch_size=8, tokens_per_pass=capacity, steps=3, adapter=config, lr=1e-3)))
        weights.append(torch.cat([p.detach().flatten() for p in adapters.trainable(model).values()]))
    assert np.allclose(losses_[0], losses_[1], atol=1e-10, rtol=0)
    assert torch.allclose(weights[0], weights[1], atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_only_the_adapter_trains_and_off_is_the_base_bit_for_bit(kind: str) -> None:
    base, model = tiny_model(), tiny_model()
    config = AdapterConfig(kind=kind, rank=4, dropout=0.1)
    told = adapters.attach(model, config, 0)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    started = {n: p.detach().clone() for n, p in adapters.trainable(model).items()}
    assert told.trained == sum(p.numel() for p in started.values())
    steps(model, rows(8), plan_of(adapter=config))
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    assert all(not torch.equal(p, started[n]) for n, p in adapters.trainable(model).items())
    ids = torch.tensor([rows(1)[0].ids])
    with torch.no_grad(), adapters.off(model.train()):
        assert torch.equal(model(ids).logits, base.train()(ids).logits)
    with torch.no_grad():
        assert not torch.equal(model.eval()(ids).logits, base.eval()(ids).logits)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_merged_equals_adapted(kind: str) -> None:
    model = tiny_model(dtype=torch.float64)
    adapters.attach(model, AdapterConfig(kind=kind, rank=4), 0)
    steps(model, rows(8), plan_of())
    ids = torch.tensor([rows(1)[0].ids])
    with torch.no_grad():
        before = model.eval()(ids).logits
        adapters.merge(model)
        assert not adapters.adapted(model)
        assert torch.allclose(model(ids).logits, before, atol=1e-10)


def test_patterns_choose_layers_and_a_wrong_one_lists_them() -> None:
    model = tiny_model()
    assert {n.rsplit(".", 1)[-1] for n in adapters.targets(model, ["q_proj", "layers.0.mlp.*"])} == {
        "q_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    assert "lm_head" not in adapters.targets(model, ["all-linear"])
    with pytest.raises(Exception, match=r"LORA_NO_TARGET.*q_proj"):
        adapters.targets(model, ["c_attn"])


class Killed(Exception):
    pass


@pytest.mark.parametrize("kind", ["lora", "none"])
def test_interrupted_equals_uninterrupted(tmp_path: Any, kind: str) -> None:
    """Weights, losses and metrics after a stop at every step, with dropout, accumulation and shuffling: bitwise."""
    from tunewright.core.run_folder import Run, read_lines
    from tunewright.core.run_folder import create as new_run

    config = AdapterConfig(kind="lora", rank=4, dropout=0.2) if kind == "lora" else AdapterConfig(kind="none")
    plan = plan_of(steps=6, adapter=config, tokens_per_pass=40, checkpoint_every=1, lr=1e-3)
    data, dev = rows(9), rows(3, seed=5)

    def go(name: str, stop: int | None) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
        run = new_run(tmp_path, name, "x") if not (tmp_path / name).exists() else Run(tmp_path / name)
        model = tiny_model()
        adapters.attach(model, config, plan.seed)

        def watch(p: loop.Progress) -> None:
            if p.step == stop:
                raise Killed

        loop.train(model, sft, data, dev, plan, run, {"data": "d"}, watch)
        lines = [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(run.metrics)]
        return [p.detach().clone() for p in adapters.trainable(model).values()], lines

    weights, lines = go("straight", None)
    for stop in range(1, 6):
        with pytest.raises(Killed):
            go(f"stopped-{stop}", stop)
        again, again_lines = go(f"stopped-{stop}", None)
        assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
        assert again_lines == lines


def test_resume_on_other_ground_names_what_changed(tmp_path: Any) -> None:
    model = tiny_model()
    adapters.attach(model, LORA, 0)
    parameters = adapters.trainable(model)
    optimizer = loop.make_optimizer(parameters, plan_of())
    checkpoints.save(tmp_path, parameters, optimizer, checkpoints.State(4, {"data": "a", "model": "b"}), 2)
    with pytest.raises(Exception, match=r"RESUME_MISMATCH.*data was a, is x"):
        checkpoints.restore(tmp_path, parameters, optimizer, {"data": "x", "model": "b"})


def test_nan_stops_before_the_step_is_taken() -> None:
    model = tiny_model()
    adapters.attach(model, LORA, 0)
    parameters = adapters.trainable(model)
    with torch.no_grad():
        next(iter(parameters.values()))[0, 0] = float("nan")
    before = {n: p.detach().clone() for n, p in parameters.items()}
    with pytest.raises(Exception, match=r"TRAIN_NOT_FINITE.*step 1"):
        steps(model, rows(4), plan_of())
    assert all(torch.equal(p.nan_to_num(0.5), before[n].nan_to_num(0.5)) for n, p in parameters.items())


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_follows_its_formula_to_the_floor(schedule: str) -> None:
    plan = plan_of(steps=20, warmup_steps=4, schedule=schedule)
    rates = [loop.learning_rate(plan, s) for s in range(20)]
    assert rates[:4] == [plan.lr * (s + 1) / 4 for s in range(4)]
    assert all(a >= b for a, b in itertools.pairwise(rates[3:]))
    assert math.isclose(rates[-1], plan.lr * (1.0 if schedule == "constant" else loop.FLOOR))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 99))
def test_an_epoch_sees_every_row_once(count: int, batch: int, seed: int) -> None:
    per_epoch = -(-count // batch)
    for epoch in range(2):
        seen = [i for s in range(per_epoch) for i in packing.step_rows(count, batch, seed, epoch * per_epoch + s)]
        assert sorted(seen) == list(range(count))


def test_cross_entropy_sums() -> None:
    logits, target = torch.randn(5, 7, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4])
    total, weight = losses.cross_entropy(logits, target, torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0]))
    per = -logits.log_softmax(-1)[torch.arange(5), target]
    assert weight == 5.0
    assert torch.isclose(total, per[0] + 2 * per[2] + per[3] + per[4])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_chunked_head_equals_all_logits_at_once(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradient, over chunk borders."""
    monkeypatch.setattr(losses, "CHUNK", 4)
    draw = torch.Generator().manual_seed(0)
    head = torch.randn(50, 8, generator=draw).to(dtype)
    target, weight = torch.randint(0, 50, (11,), generator=draw), torch.rand(11, generator=draw)
    found = []
    for way in (
        lambda h: losses.head_cross_entropy(h, head, target, weight)[0],
        lambda h: losses.cross_entropy(h @ head.T, target, weight)[0],
    ):
        hidden = torch.randn(11, 8, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
        total = way(hidden)
        (total / 3).backward()
        found.append((total.detach(), hidden.grad))
    tolerance = 1e-12 if dtype == torch.float64 else 2e-2
    assert torch.allclose(found[0][0], found[1][0], rtol=tolerance)
    assert torch.allclose(found[0][1], found[1][1], rtol=tolerance, atol=tolerance)


def test_a_loaded_model_uses_the_chunked_head_exactly(model_folder: Any) -> None:
    model, data = loading.load(model_folder(), torch.float64), rows(5)
    assert model.plain_head
    batch = packing.to_batch(data, "packed")
    assert (
        abs(
            float(loading.loss(model, batch)[0])
            - float(
                losses.cross_entropy(
                    loading.forward(model, batch), torch.from_numpy(batch.target_N), torch.from_numpy(batch.weight_N)
                )[0]
            )
        )
        < 1e-9
    )
    padded = packing.to_batch(data, "padded")
    assert abs(float(loading.loss(model, padded)[0]) - float(loading.loss(model, batch)[0])) < 1e-9
