"""The verdict from scores alone: dev chooses, test decides, and a difference within noise does not count."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from tunewright.core.records import TopicContrast, Verdict
from tunewright.core.records.common import Interval
from tunewright.judge.arms.arm import Arm
from tunewright.judge.arms.prompted import Prompted
from tunewright.judge.protocol import RULE, Protocol
from tunewright.judge.verdict import (
    Decision,
    RerunNoise,
    ScoredArm,
    choose_comparator,
    choose_variant,
    final_verdict,
    sentence,
)

PROTOCOL = Protocol(
    rule=RULE,
    metric="accuracy",
    higher_is_better=True,
    margin=0.02,
    alpha=0.05,
    arms={},
    max_new_tokens=8,
    dev_rows=4,
    test_rows=4,
    rows_sha256="",
    detectable=None,
    assumed="",
)


def decided(
    scores: dict[str, Sequence[float]],
    on_dev: dict[str, float],
    protocol: Protocol = PROTOCOL,
    noise: RerunNoise | None = None,
    topic: TopicContrast | None = None,
) -> Decision:
    arms = {
        name: ScoredArm(description="", trained=name == "tuned", scores=tuple(map(float, s)), on_dev=on_dev.get(name))
        for name, s in scores.items()
    }
    comparator = choose_comparator(arms, protocol.higher_is_better)
    return final_verdict(arms, comparator, protocol, range(len(scores["tuned"])), noise, topic)


def recorded(decision: Decision, noise: RerunNoise | None = None, topic: TopicContrast | None = None) -> Verdict:
    """As verdict.json."""
    rest = {
        "variants_on_dev": {},
        "overlap": None,
        "corpus": {"metric": "macro_f1", "tuned": 0.0, "comparator": 0.0, "difference": 0.0, "interval": None},
        "task": "label",
        "max_new_tokens": 8,
        "test_reads": 1,
        "dev_rows": 4,
        "protocol": "",
        "rerun": noise and dataclasses.asdict(noise),
        "topic": topic,
    }
    return Verdict.model_validate({**decision.to_json(), **rest}, strict=False)


def test_dev_chooses_the_comparator_and_test_decides() -> None:
    scores = {"zero_shot": [1, 1, 0, 1], "few_shot": [0, 1, 0, 1], "tuned": [1, 1, 1, 1]}
    on_dev = {"zero_shot": 0.4, "few_shot": 0.6}
    verdict = decided(scores, on_dev)
    assert verdict.comparator.name == "few_shot"  # although zero-shot happens to be better on test
    assert verdict.comparator.chosen_on == "dev"
    assert verdict.comparison.difference == 0.5
    contrast = verdict.arms["zero_shot"].contrast
    assert contrast is not None
    assert contrast.comparison.difference == 0.25
    assert contrast.p_holm >= contrast.comparison.p_value
    assert (verdict.verdict, verdict.unbeaten) == ("CANNOT TELL", ("zero_shot", "few_shot"))
    without = decided(scores, {}).comparator
    assert (without.name, without.chosen_on) == ("zero_shot", "test")
    lower = decided(scores, on_dev, dataclasses.replace(PROTOCOL, higher_is_better=False))
    assert lower.comparator.name == "zero_shot"


def test_a_bad_choice_on_dev_does_not_make_the_tuned_model_better() -> None:
    """Shuffled labels and a model that learned the most frequent one: it beats the arm that a noisy dev chose, but not
    the constant answer."""
    draw = np.random.default_rng(0)
    constant, base = (draw.random(100) < 0.55).astype(float), (draw.random(100) < 0.3).astype(float)
    on_dev = {"zero_shot": 0.5, "constant": 0.45}
    verdict = decided({"zero_shot": base, "constant": constant, "tuned": constant}, on_dev)
    assert verdict.comparator.name == "zero_shot"
    assert verdict.comparison.interval.low > 0
    assert (verdict.verdict, verdict.unbeaten) == ("CANNOT TELL", ("constant",))
    assert "not shown to be better than constant" in sentence(recorded(verdict))
    verdict = decided({"zero_shot": base, "constant": constant, "tuned": np.ones(100)}, on_dev)
    assert (verdict.verdict, verdict.unbeaten) == ("BETTER", ())
    assert "not shown" not in sentence(recorded(verdict))


def test_the_record_has_the_comparison_of_every_arm() -> None:
    record = decided({"zero_shot": [0.0] * 30, "constant": [0, 1] * 15, "tuned": [1.0] * 30}, {}).to_json()
    assert (record["verdict"], record["tuned"], record["n"], record["unbeaten"]) == ("BETTER", 1.0, 30, [])
    assert record["comparator"]["name"] == "constant"
    assert record["difference"] == record["arms"]["constant"]["tuned_minus_this"]["difference"] == 0.5
    assert "tuned_minus_this" not in record["arms"]["tuned"]
    assert record["groups"] == list(range(30))


@pytest.mark.parametrize(("floor", "word"), [(0.0, "BETTER"), (0.99, "BETTER"), (1.0, "CANNOT TELL")])
def test_a_difference_within_rerun_noise_does_not_count(floor: float, word: str) -> None:
    noise = RerunNoise(rows=8, changed=1, floor=floor)
    verdict = decided({"zero_shot": [0.0] * 30, "tuned": [1.0] * 30}, {}, noise=noise)
    assert verdict.verdict == word
    assert verdict.rows_needed is None  # more rows do not reduce this noise
    record = recorded(verdict, noise)
    assert record.is_better is (word == "BETTER")
    assert record.within_rerun_noise is ("within re-run noise" in sentence(record)) is (word == "CANNOT TELL")


@pytest.mark.parametrize(("low", "word"), [(0.01, "BETTER"), (-0.01, "CANNOT TELL")])
def test_answers_that_do_not_depend_on_the_question_are_not_better(low: float, word: str) -> None:
    topic = TopicContrast(rows=30, difference=0.02, interval=Interval(low, 0.05))
    decision = decided({"zero_shot": [0.0] * 30, "tuned": [1.0] * 30}, {}, topic=topic)
    record = recorded(decision, topic=topic)
    rows = None if word == "BETTER" else 68  # of 30 rows, the half width is 0.03: 30 * (0.03 / 0.02)^2
    assert (decision.verdict, decision.rows_needed) == (word, rows)
    assert record.off_topic is ("not shown to depend on the question" in sentence(record)) is (word == "CANNOT TELL")


def test_rerun_noise_leaves_equality_alone() -> None:
    for noise in (None, RerunNoise(rows=8, changed=0, floor=0.0)):
        verdict = decided({"zero_shot": [1.0] * 400, "tuned": [1.0] * 400}, {}, noise=noise)
        assert verdict.verdict == "PRACTICALLY EQUAL"


def test_dev_chooses_the_variant() -> None:
    first, second = Arm("a", "", Prompted(), "one"), Arm("a", "", Prompted(), "two")
    assert choose_variant([first, second], {}, True) is first
    assert choose_variant([first, second], {"a-one": 0.2, "a-two": 0.4}, True) is second
    assert choose_variant([first, second], {"a-one": 0.2, "a-two": 0.4}, False) is first
    assert choose_variant([first, second], {"a-one": 0.2, "a-two": 0.2}, True) is first


def test_an_arm_that_is_shown_to_be_better_makes_the_verdict_worse_whatever_dev_chose() -> None:
    """Dev has chosen a weak arm, to which tuned is equal."""
    weak = [1.0] * 220 + [0.0] * 180
    strong = [1.0] * 320 + [0.0] * 80
    decision = decided({"tuned": weak, "constant": weak, "few_shot": strong}, {"constant": 0.6, "few_shot": 0.5})
    assert decision.comparison.verdict == "PRACTICALLY EQUAL"
    assert (decision.verdict, decision.better) == ("WORSE", ("few_shot",))
    assert "shown to be worse than few_shot (0.800)" in sentence(recorded(decision))
    alike = decided({"tuned": weak, "constant": weak, "few_shot": weak}, {"constant": 0.6, "few_shot": 0.5})
    assert (alike.verdict, alike.better) == ("PRACTICALLY EQUAL", ())


@pytest.mark.parametrize(("rows", "word"), [(2, "CANNOT TELL"), (5, "CANNOT TELL"), (6, "BETTER")])
def test_a_few_rows_are_no_evidence(rows: int, word: str) -> None:
    """Even if all of them are won: with two rows that happens in a quarter of all cases by chance."""
    decision = decided({"tuned": [1.0] * rows, "zero_shot": [0.0] * rows}, {"zero_shot": 0.5})
    assert decision.verdict == word
    assert word == "BETTER" or (decision.rows_needed or 0) > rows
