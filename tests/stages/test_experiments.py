"""Prompt distillation, cross-fitting and the learning curve."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from build import cli, read

from tunewright import api
from tunewright.core.config import load
from tunewright.core.console import Console
from tunewright.core.errors import ConfigError
from tunewright.core.run_folder import Run
from tunewright.fan.jobs import HERE
from tunewright.stages.runner import Runner
from tunewright.stages.stage import Stage


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


@pytest.mark.parametrize(
    "given", ["train.method=dpo", "train.method=classify", "train.method=kto", "adapter.kind=none"]
)
@pytest.mark.parametrize("asked", ["prompt_distillation=5", "crossfit=true", "mitigation=true"])
def test_an_experiment_of_fine_tuning_is_refused_where_it_is_not_read(asked: str, given: str) -> None:
    load(None, [f"experiments.{asked}"])
    with pytest.raises(ConfigError, match=rf"CONFIG_CONFLICT.* experiments.{asked.partition('=')[0]}"):
        load(None, [f"experiments.{asked}", given])


def test_an_experiment_that_is_left_out_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = load(None, ["experiments.mitigation=true"])
    for config, printed in ((asked, True), (load(None, []), False)):
        context: Any = SimpleNamespace(run=Run(tmp_path), config=config, console=Console(), where=HERE)
        runner, work = Runner(context), SimpleNamespace()
        runner._work = work  # type: ignore[assignment]
        runner._do(Stage("mitigation", lambda inputs: None, skip_reason=lambda work: "there are no dev rows"))
        assert ("experiments.mitigation is left out: there are no dev rows" in capsys.readouterr().err) is printed
        assert read(tmp_path, "mitigation")["reason"] == "there are no dev rows"
