"""A teacher's probabilities as targets: gold rows are supervised fine-tuning, and a teacher that is the student teaches
nothing."""

from __future__ import annotations

import pytest
import torch
from build import plan_of, rows, with_adapter

from tunewright.methods import Method, distill, sft
from tunewright.model import adapters
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.sequences import TokenSequence, TrainRow, single


def gradient(
    model: LanguageModel, method: Method, data: list[TrainRow], layout: str
) -> tuple[float, list[torch.Tensor]]:
    plan, total = plan_of(layout=layout), 0.0
    model.module.zero_grad()
    for microbatch in method.microbatches(model, data, range(len(data)), plan, 0):
        part = method.loss(model, microbatch, plan).sum
        part.backward()
        total += float(part.detach())
    return total, [p.grad.clone() for p in adapters.trainable(model.module).values()]


def gold(data: list[TokenSequence]) -> list[TrainRow]:
    return [single(r) for r in data]


def relatives() -> list[TokenSequence]:
    """Rows with the first half in common, one of them twice."""
    data = rows(6)
    common = data[0].ids[:2] + tuple(range(40, 70))
    actual = [TokenSequence(common + r.ids, (*[0.0] * len(common), *r.weights), r.row) for r in data]
    return [*actual, TokenSequence(actual[0].ids, actual[0].weights, 6)]


@pytest.mark.parametrize("layout", ["packed", "padded", "shared"])
def test_gold_rows_are_supervised_fine_tuning(layout: str) -> None:
    model, data = with_adapter("llama", torch.float64), relatives()
    loss, grads = gradient(model, sft, gold(data), "packed")
    same, also = gradient(model, distill, gold(data), layout)
    assert same == pytest.approx(loss, abs=1e-9)
    assert all((a - b).abs().max() < 1e-9 for a, b in zip(grads, also, strict=True))


def test_a_teacher_that_is_the_student_teaches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "K", 260)
    model, data = with_adapter("llama", torch.float64), relatives()
    rows_ = distill.with_probabilities(model, data, data, "packed")
    _, grads = gradient(model, distill, rows_, "packed")
    _, golden = gradient(model, distill, gold(data), "packed")
    assert max(g.abs().max() for g in grads) < 1e-5 * max(
        g.abs().max() for g in golden
    )  # probabilities are kept in float32


@pytest.mark.parametrize("layout", ["padded", "shared"])
def test_rows_of_both_kinds_weigh_what_they_should(layout: str) -> None:
    model, data = with_adapter("llama", torch.float64), relatives()
    with adapters.off(model.module):
        replay = distill.with_probabilities(model, data[:3], data[:3], "shared", weight=0.5)
    mixed = [*gold(data), *replay]
    loss, grads = gradient(model, distill, mixed, "packed")
    same, also = gradient(model, distill, mixed, layout)
    assert same == pytest.approx(loss, abs=1e-9)
    assert all((a - b).abs().max() < 1e-9 for a, b in zip(grads, also, strict=True))
    whole = gradient(model, distill, gold(data), "packed")[0] + gradient(model, distill, replay, "packed")[0]
    assert loss == pytest.approx(whole, abs=1e-9)


def test_the_teacher_may_read_another_prompt() -> None:
    """Prompt distillation: the teacher reads the prompt, the student does not; the answers are the same tokens."""
    model, data = with_adapter("llama", torch.float64), rows(4)
    prompt = (9, 8, 7)
    teacher_rows = [TokenSequence(prompt + r.ids, (0.0, 0.0, 0.0, *r.weights), r.row) for r in data]
    taught = distill.with_probabilities(model, teacher_rows, data, "packed")
    assert [t.sequences[0].ids for t in taught] == [r.ids for r in data]
    for t in taught:
        assert t.signal["prob_MK"].shape == (t.supervised, distill.K)
        assert t.signal["prob_MK"].sum(1) == pytest.approx(1.0, abs=1e-5)
