"""Settings from a file and from the command line."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tunewright.core.config import Config, load, to_yaml
from tunewright.core.errors import ConfigError


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


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("train.lr='1e-4'", "write the number without quotes."),
        ("train.steps='40'", "write the number without quotes."),
        ("train.lr=5", "choose an allowed value, or leave it out (default: auto)."),
        ("train.lr=fast", "choose an allowed value, or leave it out (default: auto)."),
        ("data.instruction=7", "put it in quotes: 'data.instruction=\"...\"'."),
    ],
)
def test_the_fix_of_a_wrong_value_says_what_to_do(override: str, fix: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(None, [override])
    assert error.value.problems[0].fix == fix


def test_configs_can_be_read_by_several_threads_at_once(tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.yaml" for n in range(8)]
    for n, file in enumerate(files):
        file.write_text(to_yaml(Config(seed=n)))
    with ThreadPoolExecutor(8) as pool:
        configs = list(pool.map(load, files * 4))
    assert [c.seed for c in configs] == [*range(8)] * 4
