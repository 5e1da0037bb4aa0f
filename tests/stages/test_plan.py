"""The plan: every number with its reason, and the rows that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

from build import Folder, Rows, cli


def test_every_number_has_a_reason_and_nothing_is_trained(
    tmp_path: Path, chat_rows: Rows, model_folder: Folder
) -> None:
    done = cli("plan", str(chat_rows()), "--name", "p", "--model", str(model_folder("llama")), "--json", cwd=tmp_path)
    plan = json.loads(done.stdout)
    resolved = {
        "steps",
        "batch_size",
        "tokens_per_pass",
        "max_length",
        "layout",
        "dtype",
        "lr",
        "eval_every",
        "checkpoint_every",
    }
    assert resolved <= set(plan["reasons"])
    assert all(plan["reasons"].values())
    assert plan["estimate"]["train_seconds"] > 0
    assert not (tmp_path / "runs" / "p" / "training.json").exists()


def test_rows_over_the_limit_are_named_or_dropped_on_request(
    tmp_path: Path, chat_rows: Rows, model_folder: Folder
) -> None:
    data = chat_rows()
    with open(data, "a") as file:
        file.write(
            json.dumps({"messages": [{"role": "user", "content": "x" * 300}, {"role": "assistant", "content": "Y"}]})
            + "\n"
        )
    arguments = ["plan", str(data), "--model", str(model_folder("llama")), "train.max_length=200"]
    done = cli(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "[DATA_TOO_LONG]" in done.stderr
    assert "rows.jsonl:61" in done.stderr
    assert cli(*arguments, "data.too_long=drop", cwd=tmp_path).returncode == 0


def test_an_experiment_that_cannot_be_run_is_an_error_before_training(
    tmp_path: Path, chat_rows: Rows, model_folder: Folder
) -> None:
    flags = ("--name", "p", "--model", str(model_folder("llama")), "experiments.prompt_distillation=5")
    done = cli("run", str(chat_rows()), *flags, "adapter.kind=none", "train.lr=1e-4", cwd=tmp_path)
    assert "CONFIG_CONFLICT" in done.stderr
    assert not (tmp_path / "runs" / "p" / "receipt.json").exists()
