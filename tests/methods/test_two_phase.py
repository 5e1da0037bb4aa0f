"""Pairs that fit no pass: their loss and gradient are those of one pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from build import LORA, plan_of, with_adapter
from methods.test_preference import gradient, prepared, with_reference

from tunewright.core.config import AdapterConfig, MethodOptions, Plan, load
from tunewright.core.errors import TrainError
from tunewright.core.records import StepLine
from tunewright.core.run_folder import Run, read_lines
from tunewright.methods import METHODS, precomputed
from tunewright.methods.pair_losses import LOSSES
from tunewright.model import adapters
from tunewright.model.facts import read_facts
from tunewright.system.machine import Machine
from tunewright.tokens.packing import Microbatch
from tunewright.tokens.sequences import TrainRow, head_sequence
from tunewright.train import dealing, loop, planning, step
from tunewright.train.recipe import RowStats

WHOLE = 4096
SMALL = (1, 45, 70, 100)  # every pair is divided; some are


def plan(name: str, **more: Any) -> Plan:
    own = {k: more.pop(k) for k in list(more) if k in MethodOptions.model_fields}
    options = METHODS[name].options(MethodOptions(**own))
    return plan_of(**{"method": name, "layout": "shared", "batch_size": 5, "options": options, **more})


def computed(rows: list[TrainRow], asked: Plan) -> tuple[list[Microbatch], float, torch.Tensor, dict[str, float]]:
    """The passes of a step, its loss, gradient and metrics."""
    model, method = with_adapter("llama", torch.float64, vocabulary=300), METHODS[asked.method]
    passes = method.microbatches(model, rows, range(len(rows)), asked, 0)
    weight, total, metrics = sum(map(method.weight, passes)), 0.0, dict[str, float]()
    assert weight == len(rows)
    for part in passes:
        loss = method.loss(model, part, asked)
        (loss.sum / weight).backward()  # type: ignore[no-untyped-call]
        total += float(loss.sum.detach()) / weight
        for name, value in loss.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + float(value) / weight
    return passes, total, gradient(model), metrics


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
@pytest.mark.parametrize(("name", "nll"), [*((name, 0.0) for name in LOSSES), ("dpo", 0.7), ("simpo", 0.7)])
def test_a_pair_that_fits_no_pass_has_the_loss_and_gradient_of_one(name: str, nll: float, layout: str) -> None:
    rows = with_reference(prepared()) if LOSSES[name].reference else prepared()
    asked = plan(name, layout=layout, nll_weight=nll, tokens_per_pass=WHOLE)
    whole, loss, wanted, metrics = computed(rows, asked)
    assert len(whole) == 1
    divided = set()
    for capacity in SMALL:
        passes, actual, slope, also = computed(rows, asked.model_copy(update={"tokens_per_pass": capacity}))
        divided.add(sum("slope_S" in p.signal for p in passes))
        assert actual == pytest.approx(loss, rel=0, abs=1e-10)
        assert torch.allclose(slope, wanted, rtol=0, atol=1e-10)
        assert also == pytest.approx(metrics, rel=0, abs=1e-10)
    assert max(divided) == 2 * len(rows), "at the smallest capacity, every answer is a pass"
    assert len(divided) > 1


def test_a_dev_loss_does_not_depend_on_the_passes() -> None:
    model, rows = with_adapter("llama", torch.float64, vocabulary=300), with_reference(prepared())
    losses = [step.dev_loss(model, rows, plan("ipo", tokens_per_pass=capacity)) for capacity in (WHOLE, *SMALL)]
    assert losses == pytest.approx([losses[0]] * len(losses), rel=0, abs=1e-10)


def test_with_dropout_a_pair_stays_together() -> None:
    """The second phase would draw other numbers than the first."""
    model = with_adapter("llama", torch.float64, vocabulary=300)
    asked = plan("simpo", tokens_per_pass=1, adapter=AdapterConfig(rank=4, dropout=0.1))
    passes = METHODS["simpo"].microbatches(model, prepared(), range(5), asked, 0)
    assert [METHODS["simpo"].weight(p) for p in passes] == [1.0] * 5
    with torch.no_grad():  # a dev loss has no dropout
        passes = METHODS["simpo"].microbatches(model, prepared(), range(5), asked, 0)
    assert [METHODS["simpo"].weight(p) for p in passes] == [0.5] * 10
    whole = step.dev_loss(model, prepared(), plan("simpo", tokens_per_pass=WHOLE))
    assert step.dev_loss(model, prepared(), asked) == pytest.approx(whole, rel=0, abs=1e-10)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_with_dropout_no_pass_is_larger_than_planned(layout: str, model_folder: Any) -> None:
    """Neither in the plan nor in what it says of memory, which is that of a machine without room."""
    lengths = [(300, 60), (90, 290), (10, 20)]
    rows = [TrainRow(tuple(head_sequence([5] * n, 6, i) for n in pair), i) for i, pair in enumerate(lengths)]
    words = ["data.train=x", "train.method=simpo", f"train.layout={layout}", "adapter.dropout=0.1"]
    facts, sizes = read_facts(str(model_folder("llama"))), RowStats.of(rows)
    asked = planning.make_plan(load(None, words), facts, sizes, Machine("cpu", 2, 0.001, 1, 1, 1, ""), "generation", 8)
    passes = METHODS["simpo"].microbatches(with_adapter("llama", torch.float32), rows, range(len(rows)), asked, 0)
    assert max(p.ids_BT.size for p in passes) <= asked.tokens_per_pass
    small = asked.model_copy(update={"tokens_per_pass": 1})
    with pytest.raises(TrainError, match=rf"train\.tokens_per_pass={sizes.longest_row}|choose a smaller model"):
        planning.require_memory(small, facts, sizes, 1e5)


def test_pairs_are_divided_before_they_have_a_reference() -> None:
    model = with_adapter("llama", torch.float32, vocabulary=300)
    assert dealing.speedups(model, prepared(), plan("dpo", tokens_per_pass=1, steps=4), (2,))[2] > 1


def test_the_smallest_pass_is_one_answer() -> None:
    rows = prepared()
    assert RowStats.of(rows).longest == max(len(s.ids) for r in rows for s in r.sequences)


class Killed(Exception):
    pass


def trained(folder: Path, stop: int | None = None) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    folder.mkdir(exist_ok=True)
    run, model = Run(folder), with_adapter("llama", torch.float32, vocabulary=300)
    asked = plan("dpo", tokens_per_pass=50, batch_size=2, steps=5, checkpoint_every=1, adapter=LORA)
    with torch.no_grad():
        rows = precomputed(model, prepared(), asked)
    assert any("slope_S" in p.signal for p in METHODS["dpo"].microbatches(model, rows, range(5), asked, 0))

    def stopping(line: StepLine) -> None:
        if line.step == stop:
            raise Killed

    loop.train(loop.TrainingInputs(model, asked, rows[:4], rows[4:], run, {"data": "d"}), stopping)
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(run.metrics)]
    return [p.detach().clone() for p in adapters.trainable(model.module).values()], lines


def test_a_resumed_run_is_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    weights, lines = trained(tmp_path / "straight")
    with pytest.raises(Killed):
        trained(tmp_path / "stopped", 2)
    again, lines_again = trained(tmp_path / "stopped")
    assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
    assert lines_again == lines


def test_the_second_phase_starts_where_the_first_ended() -> None:
    """The value of a pass is the unit's loss, or 0, to the last bit: nothing but the gradient is left to compute."""
    model, rows = with_adapter("llama", torch.float32, vocabulary=300), with_reference(prepared())[:1]
    asked = plan("dpo", tokens_per_pass=1)
    first, second = METHODS["dpo"].microbatches(model, rows, [0], asked, 0)
    assert float(METHODS["dpo"].loss(model, first, asked).sum.detach()) == pytest.approx(
        float(first.signal["loss_1"][0]), rel=1e-6
    )
    assert float(METHODS["dpo"].loss(model, second, asked).sum.detach()) == 0.0
