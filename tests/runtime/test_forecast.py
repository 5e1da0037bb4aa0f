"""Predictions of time: what is counted, on pilots of known speed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from build import plan_of, read

from tunewright import api
from tunewright.core.stage_names import BY_NAME
from tunewright.core.words import duration
from tunewright.judge.arms.arm import Arm
from tunewright.judge.arms.prompted import Prompted
from tunewright.runtime.forecast.estimate import PROCESS_GB, Forecast, decoding_gb
from tunewright.runtime.forecast.pilot import Lengths, Pilot, Steps

SHORT, LONG = Lengths(100, 10.0, 20, 5.0, 8), Lengths(0, 300.0, 400, 50.0, 96)
STEPS = Steps(0.05, 0.001, 0.0001, adapter=1.5)
PILOT = Pilot(0.002, 0.001, 0.01, STEPS, {"zero_shot": SHORT, "few_shot": LONG}, {})


def forecast(**plan: Any) -> Forecast:
    inputs = SimpleNamespace(rows={"train": [], "dev": [SimpleNamespace(tokens=50)] * 4})
    data = SimpleNamespace(task=SimpleNamespace(corpus=None))
    work = SimpleNamespace(plan=plan_of(**plan), inputs=inputs, data=data)
    return Forecast(work, PILOT, SHORT)  # type: ignore[arg-type]


def test_a_batch_takes_as_many_steps_as_its_longest_answer() -> None:
    f = forecast(decode_batch_size=256)
    read, rows = (100 + 20 * 10 + 20 * 300) * 0.001, 20 * (5 + 50) * 0.001
    longest_together = rows + 20 * (5 * (10 + 2.5) + 50 * (300 + 25)) * 0.0001  # attention to what is in the caches
    rows += 20 * (5 * (20 + 2.5) + 50 * (400 + 25)) * 0.0001  # all of an arm in a batch are padded to its widest
    assert f.written([SHORT, LONG], 20) == pytest.approx(read + 96 * 0.05 + rows)
    apart = f.written([SHORT], 20) + f.written([LONG], 20)
    assert apart - f.written([SHORT, LONG], 20) == pytest.approx(8 * 0.05), "the steps of the short ones are free"
    small = forecast(decode_batch_size=10)
    assert small.written([SHORT, LONG], 20) == pytest.approx(read + 4 * 96 * 0.05 + longest_together)


def test_arms_are_counted_as_they_answer() -> None:
    f = forecast(decode_batch_size=256)
    zero, few = (Arm(name, "", Prompted()) for name in ("zero_shot", "few_shot"))
    tuned = replace(zero, family="tuned", uses_adapter=True, trained=True)
    assert f.judged([zero, few], 7) == f.written([SHORT, LONG], 7)
    base, read = f.written([SHORT], 7), (100 + 7 * 10) * 0.001
    reading = Arm("zero_shot", "", Prompted(references=True))
    answer = f.tuned.mean if f.tuned else 0.0
    assert f.judged([reading], 7) == pytest.approx(base + (100 + 7 * (10 + answer)) * 0.001), "after the same prompts"
    assert f.judged([tuned], 7) == pytest.approx(read + 1.5 * (base - read)), "the adapter's products take time, too"
    scored = Arm("zero_shot", "", SimpleNamespace(needs_model=True, decoding="greedy"))  # type: ignore[arg-type]
    by_row = replace(f, pilot=replace(PILOT, others={"zero_shot": 0.2}))
    assert by_row.judged([scored], 7) == pytest.approx(1.4)
    assert by_row.judged([replace(scored, family="tuned", trained=True)], 7) == pytest.approx(1.4)
    assert f.judged([Arm("constant", "", SimpleNamespace(needs_model=False, decoding="greedy"))], 7) == 0  # type: ignore[arg-type]


def test_a_teacher_takes_as_much_longer_as_it_is_larger() -> None:
    zero = Arm("zero_shot", "", Prompted())
    teacher = Arm("teacher", "", Prompted(), trained=True, teacher=True)
    f = forecast(decode_batch_size=256)
    facts = SimpleNamespace(parameters=100)
    plan = SimpleNamespace(teacher=SimpleNamespace(parameters=700), decode_batch_size=256)
    taught = replace(f, work=SimpleNamespace(plan=plan, inputs=SimpleNamespace(facts=facts), data=f.work.data))  # type: ignore[arg-type]
    assert taught.asked([zero, teacher], 7) == pytest.approx(f.written([SHORT], 7) * (1 + 7))
    assert f.asked([zero], 7) == f.judged([zero], 7)


def test_memory_is_that_of_the_widest_batch() -> None:
    facts = SimpleNamespace(layers=10, cached=1000, parameters=0, hidden=0, vocabulary=0)
    inputs = SimpleNamespace(facts=facts, test=range(20))
    plan = plan_of(dtype="bfloat16", decode_batch_size=30, max_new_tokens=100, tokens=10_000, rows=1)
    work: Any = SimpleNamespace(inputs=inputs, plan=plan)
    cached = 20 * (400 + 100) + 10 * (20 + 100)  # the batch has no room for the other ten
    assert decoding_gb(work, PILOT) == pytest.approx(PROCESS_GB + 1e-9 * 2 * 10 * 1000 * cached)
    work.plan = plan_of(dtype="bfloat16", decode_batch_size=30, max_new_tokens=100, tokens=50, rows=1)
    limited = 30 * (4 * 50 + 100)
    assert decoding_gb(work, PILOT) == pytest.approx(PROCESS_GB + 1e-9 * 2 * 10 * 1000 * limited)


def test_training_is_counted_with_its_dev_losses() -> None:
    f = forecast(tokens=1000, epochs=2.0, steps=10, eval_every=5)
    losses = 3 * 200 * 0.001
    assert f.trained() == pytest.approx(2000 * 0.002 + 10 * 0.01 + losses)
    assert f.trained(0.5) == pytest.approx(1000 * 0.002 + 5 * 0.01 + 2 * 200 * 0.001)


def test_a_run_predicts_all_stages_that_take_long(full: api.Result) -> None:
    stages = read(full.path, "plan")["estimate"]["stages"]
    assert {"train", "forgetting", "prove", "crossfit", "learning_curve", "export"} <= set(stages) <= set(BY_NAME)
    assert all(seconds > 0 for seconds in stages.values())


def test_durations_are_given_in_units_that_people_use() -> None:
    assert [duration(s) for s in (0.4, 89.4, 91, 3000, 7800)] == ["0 s", "89 s", "2 min", "50 min", "2 h 10 min"]
