"""Answers belong to the weights that gave them, in one process or in several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from build import FLAGS, cli

from tunewright.core.run_folder import read_json, read_lines

Rows = Callable[..., Path]
Folder = Callable[[str], Path]


def test_a_resumed_run_evaluates_the_trained_weights(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    """With `prove` in one process and the rest in another, a fresh adapter was once scored on dev and cached under the
    trained weights."""
    settings = [*FLAGS, "--model", str(model_folder("llama")), "prove.evidence=plain", "experiments.mitigation=true"]
    settings += ["train.steps=40", "train.lr=0.02"]
    rows = str(chat_rows())
    whole = cli("run", rows, "--name", "whole", *settings, cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert cli("prove", rows, "--name", "parts", *settings, cwd=tmp_path).returncode == 0
    assert cli("run", "runs/parts", cwd=tmp_path).returncode == 0
    scores = [
        [
            (line["row"], line["answer"], line["score"])
            for line in read_lines(tmp_path / "runs" / name / "scores/dev/tuned.jsonl")
        ]
        for name in ("whole", "parts")
    ]
    assert scores[0] == scores[1]
    first, second = (read_json(tmp_path / "runs" / name / "mitigation.json") for name in ("whole", "parts"))
    assert first == second
