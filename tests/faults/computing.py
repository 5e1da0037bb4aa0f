"""Loss, gradient and step: the divisor, which tokens see which, and what is logged."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import torch
import transformers
from build import plan_of, rows, tiny_model, train_rows

from faults import Fault, Patch
from tunewright.core.config import AdapterConfig, Plan
from tunewright.methods import sft
from tunewright.methods.method import Loss
from tunewright.model import adapters, forward
from tunewright.model.language_model import LanguageModel
from tunewright.tokens import packing
from tunewright.tokens.prefix_tree import build
from tunewright.tokens.sequences import TrainRow, flat
from tunewright.train import step


def model_of(plan: Plan, dtype: torch.dtype = torch.float64) -> LanguageModel:
    """A tiny model whose adapter has an effect."""
    model = LanguageModel(tiny_model().to(dtype), plain_head=True)
    adapters.attach(model.module, plan.adapter, 0)
    for p in adapters.trainable(model.module).values():
        p.data = (
            torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=torch.float64).to(dtype)
            * 0.05
        )
    return model


def one_step(plan: Plan, data: list[TrainRow]) -> tuple[step.Step, dict[str, torch.Tensor]]:
    """(logged values, gradient) of one step."""
    student = step.make_learner(model_of(plan), plan)
    done = step.take_step(student, data, plan, 0)
    return done, {n: p.grad.clone() for n, p in student.parameters.items() if p.grad is not None}


def one_denominator() -> None:
    data = train_rows(8)
    whole, parts = (one_step(plan_of(batch_size=8, tokens_per_pass=c, max_grad_norm=1e9), data)[1] for c in (4096, 40))
    assert all(torch.allclose(whole[n], parts[n], rtol=0, atol=1e-10) for n in whole)


def means_of_means(patch: Patch) -> None:
    def loss(model: LanguageModel, microbatch: packing.Microbatch, plan: Plan) -> Loss:
        return Loss(forward.loss(model, microbatch) / sft.weight(microbatch))

    patch.setattr(sft, "loss", loss)


def logged_loss() -> None:
    data, plan = train_rows(8), plan_of(batch_size=8, tokens_per_pass=40)
    done, _ = one_step(plan, data)
    model = model_of(plan)
    microbatches = sft.microbatches(model, data, range(8), plan, 0)
    assert len(microbatches) > 1
    total = sum(float(forward.loss(model, b).detach()) for b in microbatches)
    assert abs(done.loss - total / sum(r.supervised for r in data)) < 1e-9


def scaled_log(patch: Patch) -> None:
    plain = step.Step
    patch.setattr(step, "Step", lambda loss, **more: plain(loss=loss * 3, **more))


def nobody_sees_another() -> None:
    model, (a, b) = model_of(plan_of()), rows(2, seed=1)
    for layout in ("shared", "packed", "padded"):
        other = dataclasses.replace(a, ids=tuple((t + 7) % 250 for t in a.ids))
        microbatches = [packing.to_microbatch([x, b], layout) for x in (a, other)]  # type: ignore[arg-type]
        first, second = (
            forward.logits(model, microbatch)[microbatch.prediction_M[-b.supervised :]] for microbatch in microbatches
        )
        assert torch.allclose(first, second, rtol=0, atol=1e-12), layout


def one_long_document(patch: Patch) -> None:
    def folded(ids: Any, shared: bool = False) -> Any:
        tree = build([[t for row in ids for t in row]], False)
        ends = np.cumsum([len(row) for row in ids])
        return dataclasses.replace(
            tree, place=[tree.place[0][e - len(row) : e] for row, e in zip(ids, ends, strict=True)]
        )

    patch.setattr(packing, "build", folded)


def positions_start_anew() -> None:
    data = rows(5)
    for layout in ("packed", "padded", "shared"):
        microbatch = packing.to_microbatch(data, layout)  # type: ignore[arg-type]
        actual = microbatch.positions_BT[microbatch.row_N, microbatch.at_N][microbatch.prediction_M]
        wanted = [t - 1 for r in data for t in range(1, len(r.ids)) if r.weights[t]]
        assert actual.tolist() == wanted, layout


def positions_run_on(patch: Patch) -> None:
    plain = packing.to_microbatch

    def microbatch(group: Any, layout: Any, *more: Any) -> Any:
        made = plain(group, layout, *more)
        return dataclasses.replace(
            made, positions_BT=np.arange(made.positions_BT.size).reshape(made.positions_BT.shape)
        )

    patch.setattr(packing, "to_microbatch", microbatch)


def loss_by_hand() -> None:
    model, (row,) = model_of(plan_of()), rows(1)
    logp_TV = model.module(torch.tensor([row.ids])).logits[0].detach().log_softmax(-1)
    by_hand = -sum(float(logp_TV[t - 1, row.ids[t]]) for t in range(1, len(row.ids)) if row.weights[t])
    microbatch = packing.to_microbatch([row], "packed")
    assert sft.weight(microbatch) == row.supervised
    assert abs(float(forward.loss(model, microbatch).detach()) - by_hand) < 1e-9


def labels_of_the_same_place(patch: Patch) -> None:
    plain = packing.to_microbatch

    def microbatch(group: Any, layout: Any, *more: Any) -> Any:
        made = plain(group, layout, *more)
        return dataclasses.replace(made, target_N=made.ids_BT[made.row_N, made.at_N])

    patch.setattr(packing, "to_microbatch", microbatch)


def padding_costs_nothing() -> None:
    model, data = model_of(plan_of()), rows(4, longest=40)
    together, alone = packing.to_microbatch(data, "padded"), [packing.to_microbatch([r], "padded") for r in data]
    assert sft.weight(together) == sum(sft.weight(b) for b in alone)
    losses = [float(forward.loss(model, b).detach()) for b in (together, *alone)]
    assert abs(losses[0] - sum(losses[1:])) < 1e-9


def padding_is_learned(patch: Patch) -> None:
    plain = packing.to_microbatch

    def microbatch(group: Any, layout: Any, *more: Any) -> Any:
        made = plain(group, layout, *more)
        short = int(np.argmin([len(r.ids) for r in group]))
        more = {"row_N": short, "at_N": made.ids_BT.shape[1] - 2, "target_N": 0, "weight_N": 1}
        return dataclasses.replace(made, **{k: np.append(getattr(made, k), v) for k, v in more.items()})

    patch.setattr(packing, "to_microbatch", microbatch)


def judging_draws_nothing() -> None:
    plan = plan_of(adapter=AdapterConfig(rank=4, dropout=0.5))
    data, dev = train_rows(6), train_rows(3, seed=9)

    def trained(judged: bool) -> list[torch.Tensor]:
        model = model_of(plan)
        student = step.make_learner(model, plan)
        for s in range(3):
            step.take_step(student, data, plan, s)
            if judged:
                before = model.module.training
                assert step.dev_loss(model, dev, plan) == step.dev_loss(model, dev, plan)
                assert model.module.training == before
        return [p.detach().clone() for p in student.parameters.values()]

    assert all(torch.equal(a, b) for a, b in zip(trained(False), trained(True), strict=True))


def never_in_eval_mode(patch: Patch) -> None:
    patch.setattr(transformers.PreTrainedModel, "eval", lambda self: self.train())


def rates() -> None:
    plan = plan_of(steps=20, warmup_steps=4, schedule="linear", lr=1.0)
    actual = [step.learning_rate(plan, s) for s in range(20)]
    up, down = [(s + 1) / 4 for s in range(4)], [0.02 + 0.98 * (1 - s / 15) for s in range(16)]
    assert np.allclose(actual, up + down)
    assert abs(actual[-1] - step.FLOOR) < 1e-12


def as_if_twice_as_long(patch: Patch) -> None:
    plain = step.learning_rate
    patch.setattr(step, "learning_rate", lambda plan, s: plain(plan.model_copy(update={"steps": 2 * plan.steps}), s))


def step_by_hand() -> None:
    """Clip by the norm of the whole gradient, then AdamW; decay on matrices only."""
    adapter = AdapterConfig(kind="dora", rank=4)
    plan = plan_of(adapter=adapter, max_grad_norm=0.01, weight_decay=0.3, lr=1e-2, warmup_steps=0)
    data = train_rows(4)
    model = model_of(plan)
    before = {n: p.detach().numpy().copy() for n, p in adapters.trainable(model.module).items()}
    probe = copy.deepcopy(model)
    microbatch = packing.to_microbatch(flat(data[i] for i in packing.step_rows(4, 4, plan.seed, 0)), "packed")
    (forward.loss(probe, microbatch) / sft.weight(microbatch)).backward()  # type: ignore[no-untyped-call]
    gradient = {n: p.grad.numpy() for n, p in adapters.trainable(probe.module).items() if p.grad is not None}
    norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
    student = step.make_learner(model, plan)
    step.take_step(student, data, plan, 0)
    for n, p in student.parameters.items():
        g = gradient[n] * min(1.0, plan.max_grad_norm / (norm + 1e-6))
        rate = step.learning_rate(plan, 0)
        decayed = before[n] * (1 - rate * (plan.weight_decay if before[n].ndim >= 2 else 0.0))
        wanted = decayed - rate * g / (np.sqrt(g**2) + 1e-8)
        assert np.allclose(p.detach().numpy(), wanted, rtol=0, atol=1e-8), n


def decay_on_everything(patch: Patch) -> None:
    def optimizer(parameters: Any, plan: Plan) -> Any:
        group = {"params": list(parameters.values()), "lr_ratio": 1.0}
        return torch.optim.AdamW([group], lr=plan.lr, weight_decay=plan.weight_decay)

    patch.setattr(step, "make_optimizer", optimizer)


FAULTS = [
    Fault(1, "gradient accumulation divides by passes, not by tokens (a mean of means)", "transformers PR 34191, 35438, 35651, 37197, 37766",
          "rows of different lengths have the same gradient in one pass and in many, to 1e-10 in float64", one_denominator, means_of_means),
    Fault(2, "the logged loss is scaled by the number of passes", "transformers 35651",
          "the logged loss equals the mean over supervised tokens, recomputed", logged_loss, scaled_log),
    Fault(10, "packed rows attend to each other", "TRL 1230, 3067, PR 3526",
          "a row's logits do not depend on the other rows of its pass; in every run, the self-test compares with rows computed alone",
          nobody_sees_another, one_long_document),
    Fault(11, "positions continue across packed rows", "as 10", "every row's positions start at 0, in every layout", positions_start_anew, positions_run_on),
    Fault(12, "labels are shifted by 0 or 2", "", "the loss is the cross-entropy of the next token, computed by hand", loss_by_hand, labels_of_the_same_place),
    Fault(13, "padding counts towards the loss", "", "a row's loss does not depend on the lengths of other rows", padding_costs_nothing, padding_is_learned),
    Fault(14, "dropout is active during evaluation, or evaluation consumes random numbers", "",
          "the dev loss is the same twice, and training continues as if it had not been computed, bit for bit", judging_draws_nothing, never_in_eval_mode),
    Fault(25, "the learning rate follows a schedule of another length", "", "the learning rate is a closed formula that ends at its floor", rates, as_if_twice_as_long),
    Fault(27, "weight decay on norms, or clipping tensor by tensor", "", "a step equals the same step computed with numpy, to 1e-8", step_by_hand, decay_on_everything),
]  # fmt: skip
