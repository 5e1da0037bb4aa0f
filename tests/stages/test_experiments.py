"""Prompt distillation, cross-fitting and the learning curve."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from build import cli, read

from tunewright import api


def test_a_distilled_prompt_saves_its_tokens(full: api.Result) -> None:
    i = read(full.path, "prompt_distillation")
    assert i["prompts"] == 10
    assert i["prompt_tokens"]["student"] < i["prompt_tokens"]["teacher"] - 100


def test_every_training_row_is_judged_by_a_model_that_has_not_seen_it(full: api.Result) -> None:
    split = [json.loads(x) for x in (full.path / "data" / "split.jsonl").read_text().splitlines()]
    train = {x["row"] for x in split if x["side"] == "train"}
    for cut in range(2):
        judged: list[int] = []
        for k in range(2):
            lines = (
                (full.path / "branches" / f"cut-{cut}-fold-{k}" / "scores" / "train-tuned.jsonl")
                .read_text()
                .splitlines()
            )
            judged += [json.loads(x)["row"] for x in lines]
        assert sorted(judged) == sorted(train)
    assert read(full.path, "crossfit")["measured"]


def test_the_learning_curve_alone(full: api.Result, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(full.path, run)
    (run / "learning_curve.json").unlink()
    done = cli("learning-curve", str(run), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    curve = json.loads(done.stdout)
    assert len(curve["points"]) == 2
    assert curve["points"][1]["score"] == pytest.approx(full.verdict["tuned"])
    assert curve["doubling"]["outcome"] in ("helps", "does not visibly help", "may or may not help")
    assert "Was there enough data?" in (run / "report.html").read_text()
