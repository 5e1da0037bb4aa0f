"""The verdict: dev selects, test decides, every arm answers the same rows."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from build import read

from tunewright import api
from tunewright.judge.protocol import RULE, Protocol
from tunewright.stages.prove import decide, sentence


def arms_of(scores: dict[str, Any], on_dev: dict[str, float]) -> dict[str, Any]:
    """As `prove` passes them to `decide`."""
    return {
        name: {
            "scores": list(s),
            "score": float(np.mean(s)),
            "on_dev": on_dev.get(name),
            "trained": name == "tuned",
            "variant": "",
        }
        for name, s in scores.items()
    }


def test_dev_chooses_the_comparator_and_test_claims() -> None:
    scores = {"zero_shot": [1.0, 1.0, 0.0, 1.0], "few_shot": [0.0, 1.0, 0.0, 1.0], "tuned": [1.0, 1.0, 1.0, 1.0]}
    on_dev = {"zero_shot": 0.4, "few_shot": 0.6}
    protocol = Protocol(
        rule="",
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
    decided = decide(arms_of(scores, on_dev), protocol, [0, 1, 2, 3])
    assert decided["comparator"]["name"] == "few_shot"  # though zero-shot happens to be better on test
    assert decided["comparator"]["chosen_on"] == "dev"
    assert decided["difference"] == 0.5
    assert decided["arms"]["zero_shot"]["tuned_minus_this"]["difference"] == 0.25
    assert (
        decided["arms"]["zero_shot"]["tuned_minus_this"]["p_holm"]
        >= decided["arms"]["zero_shot"]["tuned_minus_this"]["p_value"]
    )
    assert (decided["verdict"], decided["unbeaten"]) == ("CANNOT TELL", ["zero_shot", "few_shot"])
    without = decide(arms_of(scores, {}), protocol, [0, 1, 2, 3])["comparator"]
    assert (without["name"], without["chosen_on"]) == ("zero_shot", "test")
    lower = decide(arms_of(scores, on_dev), dataclasses.replace(protocol, higher_is_better=False), [0, 1, 2, 3])
    assert lower["comparator"]["name"] == "zero_shot"


def test_a_bad_choice_on_dev_does_not_make_the_tuned_model_better() -> None:
    """Shuffled labels, and a model that learned the commonest one: it beats the arm that a noisy dev chose, not the
    constant answer."""
    draw = np.random.default_rng(0)
    common, base = (draw.random(100) < 0.55).astype(float), (draw.random(100) < 0.3).astype(float)

    def judged(**scores: Any) -> dict[str, Any]:
        arms = arms_of(scores, {"zero_shot": 0.5, "constant": 0.45})
        return decide(
            arms, Protocol(RULE, "accuracy", True, 0.02, 0.05, {}, 8, 40, 100, "", None, ""), list(range(100))
        )

    decided = judged(zero_shot=base, constant=common, tuned=common)
    assert decided["comparator"]["name"] == "zero_shot"
    assert decided["interval"][0] > 0
    assert (decided["verdict"], decided["unbeaten"]) == ("CANNOT TELL", ["constant"])
    assert "not shown to be better than constant" in sentence(decided)
    decided = judged(zero_shot=base, constant=common, tuned=np.ones(100))
    assert (decided["verdict"], decided["unbeaten"]) == ("BETTER", [])
    assert "not shown" not in sentence(decided)


def test_every_arm_answers_the_same_rows(full: api.Result) -> None:
    v = full.verdict
    expected = [
        "zero_shot",
        "few_shot",
        "nearest",
        "retrieval",
        "tuned_retrieval",
        "constant",
        "classical",
        "tuned_short",
        "tuned",
    ]
    assert list(v["arms"]) == expected
    for name in expected:
        lines = [json.loads(x) for x in (full.path / "scores" / f"{name}.jsonl").read_text().splitlines()]
        assert len(lines) == v["n"]
        assert v["arms"][name]["score"] == pytest.approx(sum(x["score"] for x in lines) / v["n"])
    assert v["comparator"]["name"] not in ("classical", "tuned_short", "tuned_retrieval")
    assert v["comparator"]["chosen_on"] == "dev"
    assert v["again"] == {"rows": 8, "changed": 0, "floor": 0.0}, "greedy decoding on a CPU gives the same answer twice"
    shown = (full.path / "scores" / "retrieval.jsonl").read_text()
    assert "Ice and snow are cold." in shown
    short = json.loads((full.path / "scores" / "tuned_short.jsonl").read_text().splitlines()[0])
    assert [m["role"] for m in short["messages"]] == ["user"]


def test_the_protocol_is_fixed_before_training(full: api.Result) -> None:
    events = [json.loads(x) for x in (full.path / "events.jsonl").read_text().splitlines()]
    names = [e["event"] for e in events]
    assert names.index("plan_finished") < names.index("train_started")
    assert read(full.path, "receipt")["hashes"]["protocol"] == full.verdict["protocol"]
    assert (full.path / "protocol.json").stat().st_mtime <= (full.path / "metrics.jsonl").stat().st_mtime
    # Read once by the arms; the branches (cleaned, half the rows, internalised) read it too, and each is counted.
    assert full.verdict["test_reads"] == names.count("test_read") == 4
    assert "have been read 4 times" in full.report.read_text()
    assert {*full.verdict} >= {
        "retention",
        "cost",
        "curve",
        "cleaning",
        "crossfit",
        "mitigation",
        "internalised",
        "calibration",
    }
