"""The step against computation by hand, against transformers + PEFT + AdamW, and against itself split into passes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from build import (
    LORA,
    plan_of,
    steps,
    tiny_model,
    train_rows,
)

from tunewright.core.config import AdapterConfig
from tunewright.model import adapters
from tunewright.tokens import packing
from tunewright.train.step import FLOOR, learning_rate


@pytest.mark.parametrize("ratio", [1.0, 4.0])
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "none"])
def test_five_steps_equal_transformers_peft_and_adamw(kind: str, ratio: float) -> None:
    """Padded batches, PEFT's layers, torch's clipping and AdamW, or PEFT's LoRA+, our schedule by its formula: float64,
    within 1e-9."""
    import peft
    from peft.optimizers import create_loraplus_optimizer

    if ratio != 1 and kind in ("dora", "none"):
        pytest.skip("LoRA+ is about A and B; PEFT's moves magnitudes at the rate of B, too")
    data = train_rows(12)
    config = AdapterConfig(kind="none")
    if kind != "none":
        config = AdapterConfig(kind=kind, rank=4, alpha=8.0, loraplus_lr_ratio=ratio)
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
    actual = steps(ours, data, plan)
    parameters = [p for p in theirs.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=plan.lr)
    if ratio != 1:
        more = {"weight_decay": 0.1, "loraplus_weight_decay": 0.1}
        optimizer = create_loraplus_optimizer(
            theirs, torch.optim.AdamW, lr=plan.lr, loraplus_lr_ratio=ratio, loraplus_lr_embedding=plan.lr, **more
        )
    ratios = [group["lr"] / plan.lr for group in optimizer.param_groups]
    expected = []
    for step in range(plan.steps):
        chosen = [data[i].sequences[0] for i in packing.step_rows(len(data), plan.batch_size, plan.seed, step)]
        width = max(len(r.ids) for r in chosen)
        ids = torch.tensor([[*r.ids, *[0] * (width - len(r.ids))] for r in chosen])
        labels = torch.tensor(
            [
                [*(i if w else -100 for i, w in zip(r.ids, r.weights, strict=True)), *[-100] * (width - len(r.ids))]
                for r in chosen
            ]
        )
        mask = torch.tensor([[1] * len(r.ids) + [0] * (width - len(r.ids)) for r in chosen])
        logits = theirs(input_ids=ids, attention_mask=mask).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, plan.max_grad_norm)
        done = (step - 2) / 2
        rate = plan.lr * (step + 1) / 2 if step < 2 else plan.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        for group, own_ratio in zip(optimizer.param_groups, ratios, strict=True):
            group["lr"] = rate * own_ratio
        optimizer.step()
        expected.append(float(loss.detach()))
    assert max(abs(a - b) for a, b in zip(actual, expected, strict=True)) < 1e-9
    if kind != "none":
        name, layer = next(iter(adapters.adapted(ours).items()))
        assert torch.allclose(
            layer.lora_B, theirs.get_submodule(f"base_model.model.{name}").lora_B.default.weight, atol=1e-9, rtol=0
        )
    assert actual[-1] < actual[0]


@pytest.mark.parametrize("kind", ["lora", "none"])
def test_accumulation_does_not_change_the_gradient(kind: str) -> None:
    """One pass of eight ragged rows = eight passes of one (a mean of means would not be)."""
    config = AdapterConfig(kind=kind, rank=4) if kind == "lora" else AdapterConfig(kind="none")
    losses_, weights = [], []
    for capacity in (4096, 16):
        model = tiny_model(dtype=torch.float64)
        adapters.attach(model, config, 0)
        losses_.append(
            steps(
                model, train_rows(8), plan_of(batch_size=8, tokens_per_pass=capacity, steps=3, adapter=config, lr=1e-3)
            )
        )
        weights.append(torch.cat([p.detach().flatten() for p in adapters.trainable(model).values()]))
    assert np.allclose(losses_[0], losses_[1], atol=1e-10, rtol=0)
    assert torch.allclose(weights[0], weights[1], atol=1e-9, rtol=0)


def test_nan_stops_before_the_step_is_taken() -> None:
    model = tiny_model()
    adapters.attach(model, LORA, 0)
    parameters = adapters.trainable(model)
    with torch.no_grad():
        next(iter(parameters.values()))[0, 0] = float("nan")
    before = {n: p.detach().clone() for n, p in parameters.items()}
    with pytest.raises(Exception, match=r"TRAIN_NOT_FINITE.*step 1"):
        steps(model, train_rows(4), plan_of())
    assert all(torch.equal(p.nan_to_num(0.5), before[n].nan_to_num(0.5)) for n, p in parameters.items())


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_follows_its_formula_to_the_floor(schedule: str) -> None:
    plan = plan_of(steps=20, warmup_steps=4, schedule=schedule)
    rates = [learning_rate(plan, s) for s in range(20)]
    assert rates[:4] == [plan.lr * (s + 1) / 4 for s in range(4)]
    assert all(a >= b for a, b in itertools.pairwise(rates[3:]))
    assert math.isclose(rates[-1], plan.lr * (1.0 if schedule == "constant" else FLOOR))
