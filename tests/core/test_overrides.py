"""Settings from a file and from the command line."""

from __future__ import annotations

from pathlib import Path

from tunewright.core.config import Config, load, to_yaml


def test_overrides_and_yaml_1_2(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("train:\n  lr: 1e-4\n  epochs: 2\nmodel: no\ndata:\n  train: rows.jsonl\n")
    config = load(file, ["train.lr=3e-4", "adapter.targets=[q_proj, v_proj]"])
    assert config.train.lr == 3e-4
    assert config.model == "no", "YAML 1.2: `no` is a word"
    assert config.data.train == str(tmp_path / "rows.jsonl")
    assert config.adapter.targets == ["q_proj", "v_proj"]
    file.write_text(to_yaml(config))
    assert load(file) == config
    assert Config().train.lr == "auto"
