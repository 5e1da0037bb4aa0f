"""A sweep: the run uses the recipe that it chose, as if it had been configured, wherever the recipes were trained."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from build import FLAGS, Folder, Rows, cli, copied, plan_of, read, read_lines, write_chat_rows

from tunewright.cli import fan_out
from tunewright.core import config as configuration
from tunewright.core.config import recipes
from tunewright.core.console import Console
from tunewright.core.errors import ConfigError, RunError
from tunewright.core.run_folder import Run, sha256
from tunewright.fan.jobs import Where
from tunewright.runtime import branches
from tunewright.runtime.branches import Branch
from tunewright.stages import runner, worker
from tunewright.stages.experiments.sweep import _as_exact
from tunewright.train import together

FAST = [f for f in FLAGS if not f.startswith(("train.eval_every", "train.steps", "adapter", "prove.few_shot"))]
FAST += [
    "train.steps=24",
    "train.patience=0",
    "prove.evidence=plain",
    "export.rows=0",
    "export.to=[adapter]",
    "prove.significance=0.4",
]
GRID = ["train.lr=1e-6,3e-2", "adapter.rank=2,4"]


def sweep(folder: Path, rows: Path, model: Path, name: str, *more: str) -> Any:
    return cli("sweep", str(rows), "--model", str(model), *FAST, *GRID, "--name", name, *more, cwd=folder)


@pytest.fixture(scope="session")
def swept(shared: Callable[[str, Callable[[Path], object]], Path], model_folder: Folder) -> Path:
    def make(folder: Path) -> None:
        done = sweep(folder, write_chat_rows(folder / "rows.jsonl", 60), model_folder("llama"), "here")
        assert done.returncode == 0, done.stderr

    return shared("sweep", make) / "runs" / "here"


def test_a_branch_has_no_more_threads_than_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a sweep with several jobs at a time, the run has the threads of a job, and what it is compared with too."""
    monkeypatch.setattr(branches, "_hashes", lambda *_: {})
    machine = SimpleNamespace(cores=4)
    setup: Any = SimpleNamespace(
        context=SimpleNamespace(run=Run(tmp_path), where=Where()), inputs=SimpleNamespace(machine=machine)
    )
    for planned in (1, 4, 8):
        branches._begin(setup, Branch(f"b{planned}", plan_of(threads=planned), (), (), 1.0), "t", "d")
        assert read(tmp_path / "branches" / f"b{planned}", "branch")["plan"]["threads"] == min(planned, 4)


def test_a_run_that_ended_before_its_plan_can_become_a_sweep(tmp_path: Path, chat_rows: Rows) -> None:
    """It has recorded that there was no grid: then, nothing would be compared."""
    rows = str(chat_rows())

    def start(*settings: str) -> runner.Runner:
        config = configuration.load(None, settings, data__train=rows)
        return runner.Runner(runner.start(config, "r", tmp_path / "runs", Console(quiet=True), "test"))

    start().advance("sweep")
    run = Run(tmp_path / "runs" / "r")
    assert read(run.path, "sweep")["measured"] is False
    start("sweep.grid={train.lr: [1e-4, 3e-4]}")
    assert not run.sweep.exists()


def test_it_ends_with_one_read_of_test(swept: Path) -> None:
    events = [e["event"] for e in read_lines(swept, "events")]
    assert events.count("test_read") == 1
    assert events.index("sweep_finished") < events.index("plan_started") < events.index("test_read")


def test_every_recipe_is_recorded_and_half_are_dropped_at_each_rung(swept: Path) -> None:
    record = read(swept, "sweep")
    assert record["tried"] == len(record["recipes"]) == 5
    assert record["recipes"][0]["settings"] == {}
    at = [sum(len(r["rungs"]) > k for r in record["recipes"]) for k in range(3)]
    assert at == [5, 3, 2]
    assert record["recipes"][0]["seeds"] == 2
    assert record["steps"] == 5 * 6 + 3 * 6 + 2 * 12 + 2 * 24
    assert record["full_steps"] == 5 * 2 * 24


def test_what_does_not_learn_is_dropped(swept: Path) -> None:
    record = read(swept, "sweep")
    slow = [r for r in record["recipes"] if r["settings"].get("train.lr") == 1e-6]
    assert slow
    assert all(r["seeds"] == 0 for r in slow)
    assert record["challenger"] is not None
    assert record["recipes"][record["challenger"]]["settings"]["train.lr"] == 3e-2


def test_the_run_is_that_of_the_chosen_recipe(
    swept: Path, tmp_path: Path, chat_rows: Rows, model_folder: Folder
) -> None:
    record = read(swept, "sweep")
    chosen = record["recipes"][record["chosen"]]
    words = [f"{key}={value}" for key, value in chosen["settings"].items()] + ["train.eval_every=3"]
    done = cli("train", str(chat_rows()), "--model", str(model_folder("llama")), *FAST, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (alone,) = (tmp_path / "runs").iterdir()
    assert sha256(Run(alone).weights) == sha256(Run(swept).weights) == read(swept, "training")["weights_sha256"]
    assert [x["loss"] for x in read_lines(alone, "metrics")[1:]] == [
        x["loss"] for x in read_lines(swept, "metrics")[1:]
    ]


def test_the_report_shows_it(swept: Path) -> None:
    page = (swept / "report.html").read_text()
    assert "5 recipes" in page
    assert "1e-06" in page


@pytest.mark.slow  # a dozen processes, each of which imports torch
def test_killed_workers_and_a_killed_starter_change_no_bit(
    swept: Path, tmp_path: Path, chat_rows: Rows, model_folder: Folder
) -> None:
    words = ["sweep", str(chat_rows()), "--model", str(model_folder("llama")), *FAST, *GRID, "--name", "killed"]
    command = [sys.executable, "-m", "tunewright", *words, "--on", "local", "-q"]
    started, branches = time.monotonic(), tmp_path / "runs" / "killed" / "branches"
    starter = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    while not list(branches.glob("*/metrics.jsonl")) and time.monotonic() < started + 120:
        time.sleep(0.02)
    starter.send_signal(signal.SIGKILL)
    starter.communicate()
    done = sweep(tmp_path, chat_rows(), model_folder("llama"), "killed", "--on", "local")
    assert done.returncode == 0, done.stderr
    here, there = read(swept, "sweep"), read(tmp_path / "runs" / "killed", "sweep")
    assert {**here, "seconds": 0} == {**there, "seconds": 0}
    for branch in (swept / "branches").iterdir():
        for file in branch.glob("dev-*.json"):
            assert (branches / branch.name / file.name).read_bytes() == file.read_bytes()


def test_a_recipe_that_diverges_is_reported_and_the_others_go_on(
    tmp_path: Path, chat_rows: Rows, model_folder: Folder
) -> None:
    words = [*FAST, "train.lr=1e-2,1", "train.max_grad_norm=1e9", "train.warmup=0", "--full"]
    done = cli("sweep", str(chat_rows()), "--model", str(model_folder("llama")), *words, "--name", "x", cwd=tmp_path)
    record = read(tmp_path / "runs" / "x", "sweep")
    assert done.returncode == 0, done.stderr
    assert record["tried"] == 3
    for recipe in record["recipes"]:  # a rate of 1 need not diverge
        assert recipe["rungs"] or "TRAIN_NOT_FINITE" in recipe["error"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["data.instruction=a,b"], "CONFIG_CONFLICT", "no setting has several values"),
        (["sweep.grid={data.instruction: [a, b]}"], "CONFIG_CONFLICT", "cannot be swept"),
        (["train.epochs=1,3"], "CONFIG_CONFLICT", "train.steps and train.epochs are both set"),
        (["adapter.kind=lora,none", "quantise=nf4"], "CONFIG_CONFLICT", "cannot be trained"),
        (["train.lr=1e-3,soon"], "CONFIG_RANGE", "train.lr is 'soon'"),
        (["train.lr=1e-3"], "CONFIG_CONFLICT", "no setting has several values"),
        (["train.lr=auto,auto"], "CONFIG_CONFLICT", "no recipe of the grid differs"),
        (["sweep.seeds=1", "train.lr=1e-3,1e-2"], "CONFIG_RANGE", "sweep.seeds"),
        (["train.lr=" + ",".join(f"{n}e-5" for n in range(1, 400))], "CONFIG_CONFLICT", "399 recipes"),
        (["train.lr=1e-3,1e-2", "split.dev=0"], "CONFIG_CONFLICT", "there are none"),
        (["train.lr=1e-3,1e-2", "train.eval_every=20"], "CONFIG_CONFLICT", "has no dev loss near there"),
    ],
)
def test_a_grid_that_cannot_be_swept(
    words: list[str], code: str, message: str, tmp_path: Path, chat_rows: Rows, model_folder: Folder
) -> None:
    done = cli("sweep", str(chat_rows()), "--model", str(model_folder("llama")), *FAST, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert code in done.stderr
    assert message in done.stderr
    assert not (tmp_path / "runs").exists()


def test_values_are_split_at_commas_outside_brackets() -> None:
    assert fan_out.split("[q_proj, v_proj],all,'a,b'") == ["[q_proj, v_proj]", "all", "'a,b'"]
    words = fan_out.swept_settings(["adapter.targets=[q_proj],[q_proj, v_proj]", "train.steps=4"], 3, False)
    config = configuration.load(None, words, data__train="rows.jsonl")
    assert config.sweep.grid == {"adapter.targets": [["q_proj"], ["q_proj", "v_proj"]]}
    assert (config.sweep.seeds, config.sweep.halve, config.train.steps) == (3, False, 4)
    assert recipes(config) == [{}, {"adapter.targets": ["q_proj"]}, {"adapter.targets": ["q_proj", "v_proj"]}]


def test_a_single_value_of_a_swept_setting_is_the_defaults() -> None:
    words = fan_out.swept_settings(["train.lr=1e-3", "train.lr=1e-4,3e-4"], None, None)
    config = configuration.load(None, words, data__train="rows.jsonl")
    assert (config.train.lr, config.sweep.grid) == (1e-3, {"train.lr": [1e-4, 3e-4]})


def test_a_grid_in_the_file_and_one_on_the_command_line(tmp_path: Path, chat_rows: Rows) -> None:
    text = f"data: {{train: {chat_rows()}}}\nsweep: {{grid: {{adapter.rank: [8, 32]}}}}\n"
    (tmp_path / "c.yaml").write_text(text)
    done = cli("sweep", "c.yaml", "train.lr=1e-4,3e-4", cwd=tmp_path)
    assert done.returncode == 2
    assert "both have values to sweep" in done.stderr


def test_what_the_default_gave_up_is_given_up_only_by_the_same_plans() -> None:
    """A recipe with dropout is not planned with shared beginnings, and does not get them."""
    default = plan_of(layout="shared", kernels="fused")
    exact = default.model_copy(update={"kernels": "transformers"})
    same, dropout = plan_of(layout="shared", kernels="fused"), plan_of(layout="packed", kernels="fused")
    assert [getattr(_as_exact(same, default, exact), name) for name in ("layout", "kernels")] == [
        "shared",
        "transformers",
    ]
    assert _as_exact(dropout, default, exact).layout == "packed"


def test_a_run_without_a_grid_is_no_sweep(proved: Path, tmp_path: Path) -> None:
    done = cli("sweep", str(copied(proved, tmp_path)), cwd=tmp_path)
    assert done.returncode == 2
    assert "no setting has several values" in done.stderr


def test_the_grid_may_be_in_a_config_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("sweep:\n  grid:\n    train.lr: [0.1, 0.2]\n    train.moon: [1]\n")
    with pytest.raises(ConfigError, match=r"c.yaml:2.*train.moon cannot be swept"):
        configuration.load(tmp_path / "c.yaml")


def test_a_sweep_can_be_trained_by_whoever_runs_the_printed_lines(
    swept: Path, tmp_path: Path, chat_rows: Rows, model_folder: Folder
) -> None:
    done = sweep(tmp_path, chat_rows(), model_folder("llama"), "printed", "--on", "print")
    assert done.returncode == 4
    assert "waits for 5 trainings" in done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    for _ in range(2):  # the second time there is nothing to do
        subprocess.run(lines[0], shell=True, check=True, cwd=tmp_path)
    name = json.loads((swept / "sweep.json").read_text())["recipes"][0]["branch"]
    first, same = (run / "branches" / name / "dev-6.json" for run in (swept, tmp_path / "runs" / "printed"))
    assert first.read_bytes() == same.read_bytes()
    rows = chat_rows()
    rows.write_text(rows.read_text().replace("lot 0", "lot 00"))
    done = sweep(tmp_path, rows, model_folder("llama"), "printed", "--on", "print")
    assert "RESUME_MISMATCH" in done.stderr, "a branch that has finished is of other data"


def test_recipes_trained_in_common_passes_are_what_they_are_alone(
    swept: Path, tmp_path: Path, chat_rows: Rows, model_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    together_, many = together.train, list[int]()
    monkeypatch.setattr(together, "train", lambda inputs, *more: many.append(len(inputs)) or together_(inputs, *more))
    done = sweep(tmp_path, chat_rows(), model_folder("llama"), "many", "--at-once", "3")
    assert done.returncode == 0, done.stderr
    assert many[:2] == [3, 2], "five recipes, then fewer"
    here, many_ = read(swept, "sweep"), read(tmp_path / "runs" / "many", "sweep")
    assert {**here, "seconds": 0} == {**many_, "seconds": 0}
    assert sha256(Run(swept).weights) == sha256(Run(tmp_path / "runs" / "many").weights)
    for file in (swept / "branches").glob("*/dev-*.json"):
        same = tmp_path / "runs" / "many" / "branches" / file.parent.name / file.name
        assert same.read_bytes() == file.read_bytes()


def test_adapters_on_some_layers_are_trained_one_after_another(
    tmp_path: Path, chat_rows: Rows, model_folder: Folder
) -> None:
    words = [
        "sweep",
        str(chat_rows()),
        "--model",
        str(model_folder("llama")),
        *FAST,
        "adapter.targets=[q_proj],[v_proj]",
    ]
    words += ["--full", "--at-once", "2"]
    done = cli(*words, "--name", "x", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "joint passes need adapters on all linear layers" in done.stdout + done.stderr
    assert all(recipe["rungs"] for recipe in read(tmp_path / "runs" / "x", "sweep")["recipes"])


def test_equal_recipes_are_one(tmp_path: Path) -> None:
    config = configuration.load(None, ["sweep.grid={train.lr: [0.0001, 1.0e-4, 0.01]}"], data__train="rows.jsonl")
    assert recipes(config) == [{}, {"train.lr": 0.0001}, {"train.lr": 0.01}]


def test_a_recipe_that_cannot_be_trained_is_not_tried_again(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "copy"
    shutil.copytree(swept, run)
    for file in ("sweep.json", "plan.json", "training.json", "metrics.jsonl", "verdict.json"):
        (run / file).unlink()
    branch = run / "branches" / read(swept, "sweep")["recipes"][4]["branch"]
    for file in branch.glob("dev-*.json"):
        file.unlink()
    failure = {"code": "TRAIN_NOT_FINITE", "message": "NaN", "where": "w", "fix": "f"}
    (branch / "failed.json").write_text(json.dumps(failure))
    assert cli("plan", str(run), cwd=tmp_path).returncode == 0
    record = read(run, "sweep")
    assert "NaN" in record["recipes"][4]["error"]
    assert not record["recipes"][4]["rungs"]
    assert not list(branch.glob("dev-*.json"))


def test_rows_are_stored_once_for_all_recipes(swept: Path) -> None:
    assert len(list((swept / "branches" / "rows").iterdir())) == 2


def test_another_model_or_other_data_are_refused_by_a_worker(swept: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(swept, run)
    branch = run / "branches" / read(swept, "sweep")["recipes"][0]["branch"]
    (branch / "training.json").unlink()
    file = json.loads((branch / "branch.json").read_text())
    file["hashes"]["model"] = "0" * 64
    (branch / "branch.json").write_text(json.dumps(file))
    with pytest.raises(RunError, match=r"RESUME_MISMATCH.*model differ from what this branch"):
        worker.branch(Run(run), branch.name, 1.0, "")


def test_the_order_of_recipes_survives_the_config_file(tmp_path: Path) -> None:
    grid = "sweep.grid={train.lr: [0.1, 0.2], adapter.rank: [2, 4]}"
    config = configuration.load(None, [grid], data__train="rows.jsonl")
    (tmp_path / "config.yaml").write_text(configuration.to_yaml(config))
    assert recipes(configuration.load(tmp_path / "config.yaml")) == recipes(config)
    assert [list(recipe.values()) for recipe in recipes(config)[1:]] == [[2, 0.1], [2, 0.2], [4, 0.1], [4, 0.2]]
