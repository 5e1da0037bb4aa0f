"""Packed rows, shared prefixes and padded rows train alike."""

from __future__ import annotations

import json
from pathlib import Path

from build import Folder, Rows, cli


def test_the_loss_curve_does_not_depend_on_the_layout(tmp_path: Path, chat_rows: Rows, model_folder: Folder) -> None:
    """Fifty steps in float32 through the command line: packed rows, shared prefixes, and transformers' padded rows."""
    data = [json.loads(line) for line in chat_rows(80).read_text().splitlines()]
    system = {
        "role": "system",
        "content": "Answer with the colour, the animal or the thing that the item names, in capitals.",
    }
    file = tmp_path / "long.jsonl"
    file.write_text("".join(json.dumps({"messages": [system, *row["messages"]]}) + "\n" for row in data))
    flags = (
        "--model",
        str(model_folder("llama")),
        "threads=1",
        "train.steps=50",
        "train.dtype=float32",
        "train.lr=2e-3",
    )
    curves = {}
    for layout in ("shared", "packed", "padded"):
        done = cli("train", str(file), "--name", layout, *flags, f"train.layout={layout}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in (tmp_path / "runs" / layout / "metrics.jsonl").read_text().splitlines()]
        curves[layout] = [line for line in lines if "loss" in line]
    assert len(curves["shared"]) == 50
    assert curves["shared"][-1]["loss"] < 0.7 * curves["shared"][0]["loss"]
    for layout in ("shared", "padded"):
        assert max(abs(a["loss"] - b["loss"]) for a, b in zip(curves[layout], curves["packed"], strict=True)) < 1e-5
    assert sum(a["computed"] for a in curves["shared"]) < 0.6 * sum(a["tokens"] for a in curves["shared"])
    assert all(
        0.9 * a["tokens"] < a["computed"] < a["tokens"] for a in curves["packed"]
    )  # the stop token is only predicted, never computed
