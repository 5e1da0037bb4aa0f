"""Loss, gradient and step: what is divided by what, what sees what, and what is logged."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import torch
import transformers
from build import plan_of, rows, tiny_model

from faults import Fault, Patch
from tunewright.core.config import AdapterConfig, Plan
from tunewright.methods import sft
from tunewright.model import adapters, loading
from tunewright.tokens import packing
from tunewright.tokens.prefix_tree import build
from tunewright.tokens.sequences import Rendered
from tunewright.train import loop


def model_of(plan: Plan, dtype: torch.dtype = torch.float64) -> Any:
    """A tiny model whose adapter says something."""
    model = tiny_model().to(dtype)
    adapters.attach(model, plan.adapter, 0)
    for p in adapters.trainable(model).values():
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=torch.float64).to(dtype) * 0.05
    return model


def step(plan: Plan, data: list[Rendered]) -> tuple[loop.Step, dict[str, torch.Tensor]]:
    """(what was logged, gradient) of one step."""
    model = model_of(plan)
    parameters = adapters.trainable(model)
    done = loop.take_step(model, sft, data, plan, 0, loop.make_optimizer(parameters, plan), parameters)
    return done, {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}


def one_denominator() -> None:
    data = rows(8)
    whole, parts = (step(plan_of(batch_size=8, tokens_per_pass=c, max_grad_norm=1e9), data)[1] for c in (4096, 40))
    assert all(torch.allclose(whole[n], parts[n], rtol=0, atol=1e-10) for n in whole)


def means_of_means(patch: Patch) -> None:
    def loss(model: Any, batch: Any, plan: Plan) -> Any:
        nats, weight = loading.loss(model, batch)
        return nats / weight, weight

    patch.setattr(sft, "loss", loss)


def logged_loss() -> None:
    data, plan = rows(8), plan_of(batch_size=8, tokens_per_pass=40)
    done, _ = step(plan, data)
    model = model_of(plan)
    parts = [loading.loss(model, b) for b in sft.batches(data, range(8), plan)]
    assert len(parts) > 1
    assert abs(done.loss - sum(float(n.detach()) for n, _ in parts) / sum(w for _, w in parts)) < 1e-9


def scaled_log(patch: Patch) -> None:
    plain = loop.Step
    patch.setattr(loop, "Step", lambda loss, *more: plain(loss * 3, *more))


def nobody_sees_another() -> None:
    model, (a, b) = model_of(plan_of()), rows(2, seed=1)
    for layout in ("shared", "packed", "padded"):
        other = dataclasses.replace(a, ids=tuple((t + 7) % 250 for t in a.ids))
        batches = [packing.to_batch([x, b], layout) for x in (a, other)]  # type: ignore[arg-type]
        first, second = (loading.forward(model, batch)[batch.which_M[-b.supervised :]] for batch in batches)
        assert torch.allclose(first, second, rtol=0, atol=1e-12), layout


def one_long_document(patch: Patch) -> None:
    def folded(ids: Any, share: bool = False) -> Any:
        tree = build([[t for row in ids for t in row]], False)
        ends = np.cumsum([len(row) for row in ids])
        return dataclasses.replace(tree, place=[tree.place[0][e - len(row) : e] for row, e in zip(ids, ends, strict=True)])

    patch.setattr(packing, "fold", folded)


def positions_start_anew() -> None:
    data = rows(5)
    for layout in ("packed", "padded", "shared"):
        batch = packing.to_batch(data, layout)  # type: ignore[arg-type]
        found = batch.positions_BT[batch.row_N, batch.at_N][batch.which_M]
        wanted = [t - 1 for r in data for t in range(1, len(r.ids)) if r.weights[t]]
        assert found.tolist() == wanted, layout


def positions_run_on(patch: Patch) -> None:
    plain = packing.to_batch

    def batch(group: Any, layout: Any, pad: int = 0) -> Any:
        made = plain(group, layout, pad)
        return dataclasses.replace(made, positions_BT=np.arange(made.positions_BT.size).reshape(made.positions_BT.shape))

    patch.setattr(packing, "to_batch", batch)


def loss_by_hand() -> None:
    model, (row,) = model_of(plan_of()), rows(1)
    logp_TV = model(torch.tensor([row.ids])).logits[0].detach().log_softmax(-1)
    by_hand = -sum(float(logp_TV[t - 1, row.ids[t]]) for t in range(1, len(row.ids)) if row.weights[t])
    found, weight = loading.loss(model, packing.to_batch([row], "packed"))
    assert weight == row.supervised
    assert abs(float(found.detach()) - by_hand) < 1e-9


def labels_of_the_same_place(patch: Patch) -> None:
    plain = packing.to_batch

    def batch(group: Any, layout: Any, pad: int = 0) -> Any:
        made = plain(group, layout, pad)
        return dataclasses.replace(made, target_N=made.ids_BT[made.row_N, made.at_N])

    patch.setattr(packing, "to_batch", batch)


def padding_costs_nothing() -> None:
    model, data = model_of(plan_of()), rows(4, longest=40)
    together = loading.loss(model, packing.to_batch(data, "padded"))
    alone = [loading.loss(model, packing.to_batch([r], "padded")) for r in data]
    assert together[1] == sum(w for _, w in alone)
    assert abs(float(together[0].detach()) - sum(float(n.detach()) for n, _ in alone)) < 1e-9


def padding_is_learned(patch: Patch) -> None:
    plain = packing.to_batch

    def batch(group: Any, layout: Any, pad: int = 0) -> Any:
        made = plain(group, layout, pad)
        short = int(np.argmin([len(r.ids) for r in group]))
        more = {"row_N": short, "at_N": made.ids_BT.shape[1] - 2, "target_N": pad, "weight_N": 1}
        return dataclasses.replace(made, **{k: np.append(getattr(made, k), v) for k, v in more.items()})

    patch.setattr(packing, "to_batch", batch)


def judging_draws_nothing() -> None:
    plan = plan_of(adapter=AdapterConfig(rank=4, dropout=0.5))
    data, dev = rows(6), rows(3, seed=9)

    def trained(judged: bool) -> list[torch.Tensor]:
        model = model_of(plan)
        parameters = adapters.trainable(model)
        optimizer = loop.make_optimizer(parameters, plan)
        for s in range(3):
            loop.take_step(model, sft, data, plan, s, optimizer, parameters)
            if judged:
                before = model.training
                assert loop.dev_loss(model, sft, dev, plan) == loop.dev_loss(model, sft, dev, plan)
                assert model.training == before
        return [p.detach().clone() for p in parameters.values()]

    assert all(torch.equal(a, b) for a, b in zip(trained(False), trained(True), strict=True))


def never_in_eval_mode(patch: Patch) -> None:
    patch.setattr(transformers.PreTrainedModel, "eval", lambda self: self.train())


def rates() -> None:
    plan = plan_of(steps=20, warmup_steps=4, schedule="linear", lr=1.0)
    found = [loop.learning_rate(plan, s) for s in range(20)]
    up, down = [(s + 1) / 4 for s in range(4)], [0.02 + 0.98 * (1 - s / 15) for s in range(16)]
    assert np.allclose(found, up + down)
    assert abs(found[-1] - loop.FLOOR) < 1e-12


def as_if_twice_as_long(patch: Patch) -> None:
    plain = loop.learning_rate
    patch.setattr(loop, "learning_rate", lambda plan, s: plain(plan.model_copy(update={"steps": 2 * plan.steps}), s))


def step_by_hand() -> None:
    """Clip by the norm of the whole gradient, then AdamW; decay on matrices only."""
    adapter = AdapterConfig(kind="dora", rank=4)
    plan = plan_of(adapter=adapter, max_grad_norm=0.01, weight_decay=0.3, lr=1e-2, warmup_steps=0)
    data = rows(4)
    model = model_of(plan)
    before = {n: p.detach().numpy().copy() for n, p in adapters.trainable(model).items()}
    probe = copy.deepcopy(model)
    nats, weight = loading.loss(probe, packing.to_batch([data[i] for i in packing.step_rows(4, 4, plan.seed, 0)], "packed"))
    (nats / weight).backward()  # type: ignore[no-untyped-call]
    gradient = {n: p.grad.numpy() for n, p in adapters.trainable(probe).items() if p.grad is not None}
    norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
    parameters = adapters.trainable(model)
    loop.take_step(model, sft, data, plan, 0, loop.make_optimizer(parameters, plan), parameters)
    for n, p in parameters.items():
        g = gradient[n] * min(1.0, plan.clip / (norm + 1e-6))
        rate = loop.learning_rate(plan, 0)
        decayed = before[n] * (1 - rate * (plan.weight_decay if before[n].ndim >= 2 else 0.0))
        wanted = decayed - rate * g / (np.sqrt(g**2) + 1e-8)
        assert np.allclose(p.detach().numpy(), wanted, rtol=0, atol=1e-8), n


def decay_on_everything(patch: Patch) -> None:
    def optimizer(parameters: Any, plan: Plan) -> Any:
        return torch.optim.AdamW(parameters.values(), lr=plan.lr, weight_decay=plan.weight_decay)

    patch.setattr(loop, "make_optimizer", optimizer)


FAULTS = [
    Fault(1, "accumulation divides by passes, not by tokens (a mean of means)", "transformers PR 34191, 35438, 35651, 37197, 37766",
          "the gradient of one pass is that of many passes of ragged rows, to 1e-10 in float64", one_denominator, means_of_means),
    Fault(2, "the logged loss is scaled by the number of passes", "transformers 35651",
          "the logged loss is the mean over supervised tokens, computed again", logged_loss, scaled_log),
    Fault(10, "rows of one pack see each other", "TRL 1230, 3067, PR 3526",
          "another row beside it leaves a row's logits as they are; at run time the self-test compares with rows alone",
          nobody_sees_another, one_long_document),
    Fault(11, "positions run on through a pack", "as 10", "every row's positions begin at 0 in every layout", positions_start_anew, positions_run_on),
    Fault(12, "labels shifted by 0 or 2", "", "the loss is the cross-entropy of the next token, computed by hand", loss_by_hand, labels_of_the_same_place),
    Fault(13, "padding counts in the loss", "", "rows of other lengths beside it leave a row's loss as it is", padding_costs_nothing, padding_is_learned),
    Fault(14, "dropout is on while judging, or judging draws random numbers", "",
          "two dev losses are equal, and training goes on as if there had been none, bit for bit", judging_draws_nothing, never_in_eval_mode),
    Fault(25, "the rate follows a schedule of another length", "", "rates are a closed formula that ends at its floor", rates, as_if_twice_as_long),
    Fault(27, "decay on norms, clipping by parts", "", "one step is the step computed with numpy, to 1e-8", step_by_hand, decay_on_everything),
]  # fmt: skip
