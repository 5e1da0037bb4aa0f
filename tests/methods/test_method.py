"""A method is one module and one line of `METHODS`: a toy pairwise method, trained end to end by the loop."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from build import LORA, byte_tokenizer, exact_norms, plan_of, tiny_model, training_of
from methods import toy_preference

from tunewright.core.records import StepLine
from tunewright.core.run_folder import Run, read_lines
from tunewright.data.messages import Chat, Message
from tunewright.methods import METHODS, precomputed
from tunewright.model import adapters
from tunewright.tokens.render_cache import RowRenderer, cached_rows
from tunewright.tokens.sequences import TrainRow
from tunewright.tokens.template import Template
from tunewright.train import loop, profile, step


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "toy", toy_preference)


def pairs(count: int, folder: Path) -> list[TrainRow]:
    """Pairs as a run makes them: prepared by the method, through the cache."""
    asked = [Chat((Message("user", f"{i}?"), Message("assistant", f"abc{i * 7}")), f"x:{i}") for i in range(count)]
    how = RowRenderer(Template(byte_tokenizer()), METHODS["toy"].prepare, 512, "error")
    cached_rows(how, asked, range(count), folder)
    return cached_rows(how, asked, range(count), folder).rows


def plan(**more: Any) -> Any:
    given = {"method": "toy", "layout": "shared", "adapter": LORA, "lr": 3e-3, "steps": 6, "checkpoint_every": 1}
    return plan_of(**{**given, "batch_size": 4, **more})


def adapted() -> Any:
    model = tiny_model(vocabulary=300, dtype=torch.float64)
    exact_norms(model)
    adapters.attach(model, LORA, 3)
    return model


class Killed(Exception):
    pass


def trained(
    folder: Path, rows: list[TrainRow], stop: int | None = None
) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    run, model = Run(folder), adapted()
    folder.mkdir(exist_ok=True)

    def stopping(p: StepLine) -> None:
        if p.step == stop:
            raise Killed

    loop.train(loop.with_precomputed(training_of(model, plan(tokens_per_pass=90), rows[:9], rows[9:], run)), stopping)
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(run.metrics)]
    return [p.detach().clone() for p in adapters.trainable(model).values()], lines


def test_the_loop_trains_pairs_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    rows = pairs(12, tmp_path / "data")
    weights, lines = trained(tmp_path / "straight", rows)
    assert lines[0]["dev_loss"] == pytest.approx(math.log(2), abs=1e-12), "the policy starts as the reference"
    assert lines[1]["loss"] == pytest.approx(math.log(2), abs=1e-9)
    assert lines[1]["metrics"] == {"margin": pytest.approx(0, abs=1e-9), "accuracy": pytest.approx(0.5, abs=0.5)}
    assert lines[-1]["loss"] < 0.9 * math.log(2)
    assert lines[-1]["metrics"]["margin"] > 0.1
    for at in (1, 4):
        with pytest.raises(Killed):
            trained(tmp_path / f"killed-{at}", rows, at)
        again, lines_again = trained(tmp_path / f"killed-{at}", rows)
        assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
        assert lines_again == lines


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
def test_a_pair_stays_in_one_pass_and_the_divisor_is_pairs(layout: str, tmp_path: Path) -> None:
    rows = pairs(7, tmp_path)
    student = step.make_learner(training_of(adapted(), plan(), [], [], Run(tmp_path)).model, plan())
    asked = plan(layout=layout, tokens_per_pass=70, batch_size=7)
    rows = precomputed(student.model, rows, asked)
    microbatches = METHODS["toy"].microbatches(student.model, rows, range(7), asked, 0)
    assert len(microbatches) > 1
    assert sum(METHODS["toy"].weight(b) for b in microbatches) == 7
    for microbatch in microbatches:  # the sequences of a pair follow each other, undivided
        reference = microbatch.signal["reference_S"]
        whole = [r for r in rows if r.signal["reference_S"][0] in reference]
        assert sorted(reference) == sorted(np.concatenate([r.signal["reference_S"] for r in whole]))
        assert len(microbatch.prediction_M) == sum(r.supervised for r in whole)
        assert microbatch.tokens == sum(r.tokens for r in whole)
    losses = [float(METHODS["toy"].loss(student.model, b, asked).sum.detach()) for b in microbatches]
    assert step.take_step(student, rows, asked, 0).loss == pytest.approx(sum(losses) / 7, abs=1e-12)


def test_the_gradient_does_not_depend_on_the_passes(tmp_path: Path) -> None:
    rows, actual = pairs(8, tmp_path), []
    for capacity, layout in ((4096, "shared"), (60, "shared"), (60, "packed"), (60, "padded")):
        asked = plan(tokens_per_pass=capacity, layout=layout, batch_size=8, max_grad_norm=1e9)
        student = step.make_learner(training_of(adapted(), asked, [], [], Run(tmp_path)).model, asked)
        step.take_step(student, precomputed(student.model, rows, asked), asked, 0)
        grads = [p.grad for p in student.parameters.values() if p.grad is not None]
        actual.append(torch.cat([g.flatten() for g in grads]))
    assert all(torch.allclose(g, actual[0], rtol=0, atol=1e-10) for g in actual)


def test_calibration_and_profile_follow_the_plans_method(tmp_path: Path) -> None:
    training = training_of(adapted(), plan(), pairs(8, tmp_path), [], Run(tmp_path))
    assert profile.calibrate(training.model, training.rows, plan()).tokens_per_second > 0
    assert profile.measure(training.model, training.rows, plan(), 100.0).seconds > 0


def test_other_reference_numbers_are_other_rows(tmp_path: Path) -> None:
    """The hash of the precomputed rows is one of those that must be unchanged in a resumed run."""
    training = training_of(adapted(), plan(), pairs(4, tmp_path / "data"), [], Run(tmp_path / "run"))
    training.run.path.mkdir()
    first = loop.with_precomputed(training)
    loop.train(first)
    row = first.rows[0]
    moved = dataclasses.replace(row, signal={"reference_S": row.signal["reference_S"] + 1e-12})
    from tunewright.tokens.sequences import digest

    other = {**first.hashes, "rows": digest([moved, *first.rows[1:]])}
    with pytest.raises(Exception, match=r"RESUME_MISMATCH.*rows was"):
        loop.train(dataclasses.replace(first, hashes=other))
