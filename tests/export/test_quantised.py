"""A run on a base in NF4: every arm on the same numbers, exports that transformers, PEFT and bitsandbytes load."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from build import QUICK, Folder, cli

from tunewright import api
from tunewright.core.errors import ConfigError
from tunewright.core.run_folder import Run
from tunewright.runtime import chat

pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory, model_folder: Folder) -> api.Result:
    root = tmp_path_factory.mktemp("quantised")
    rows = [{"text": f"lot {i} of {('fire', 'ice')[i % 2]}", "label": ("warm", "cold")[i % 2]} for i in range(60)]
    data = root / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(model_folder("llama"), root / "base")
    settings: dict[str, Any] = {**QUICK, "quantise": "nf4", "export__to": ["adapter", "merged"]}
    return api.run(data, model=str(root / "base"), name="four", root=root, **settings)


def test_the_verdict_names_the_base_that_it_is_about(quantised: api.Result) -> None:
    receipt = json.loads((quantised.path / "receipt.json").read_text())
    assert receipt["model"]["packed"] == "nf4"
    text = quantised.report.read_text()
    assert "base in NF4</h1>" in text
    assert "layers were held in NF4, about " in text
    training = json.loads((quantised.path / "training.json").read_text())
    assert training["total"] - training["trained"] == receipt["model"]["parameters"], "packed layers are counted"


def test_the_base_that_is_not_quantised_is_an_arm_to_beat(quantised: api.Result) -> None:
    arms = json.loads((quantised.path / "verdict.json").read_text())["arms"]
    assert "full_precision" in arms
    assert not arms["full_precision"]["trained"]
    assert arms["full_precision"]["variant"] in ("zero_shot", "few_shot-k1", "few_shot-k2")
    assert "not quantised" in arms["full_precision"]["description"]
    assert "was not measured" not in quantised.report.read_text().split("<h2>")[0]


def test_exports_answer_as_the_trained_model(quantised: api.Result) -> None:
    """The adapter on the base in NF4, in a process of its own, and the merged weights, which are dense."""
    checks = {check["kind"]: check for check in json.loads((quantised.path / "export.json").read_text())}
    assert list(checks) == ["adapter", "merged"]
    for check in checks.values():
        assert check["reproduced"]["same"] == check["reproduced"]["rows"]


def test_peft_and_bitsandbytes_load_the_adapter_with_the_code_of_the_card(
    quantised: api.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(quantised.path / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / "base").symlink_to(quantised.path.parent / "base")
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "adapter" / "README.md").read_text(), re.DOTALL)
    assert "load_in_4bit=True" in code
    monkeypatch.chdir(tmp_path / "adapter")
    # On processors with AVX512-BF16, bitsandbytes rounds answers to bfloat16, and fails on layers as small as these.
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    names: dict[str, Any] = {}
    exec(code.replace('"..."', '"lot 5 of ice"'), names)
    ours = chat.load_run(Run(quantised.path)).model.module
    ids = torch.tensor([list(range(5, 40))])
    with torch.no_grad():
        gap = (names["model"](ids).logits - ours(ids).logits).abs().max()
    assert gap < 1e-3


def test_weights_in_4_bits_are_not_rounded_to_4_bits_again(quantised: api.Result, tmp_path: Path) -> None:
    done = cli("export", str(quantised.path), "export.to=[gguf]", "export.gguf=[q4_k_m]", cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(r"CONFIG_CONFLICT.*the gguf export cannot be written: .*4 bits", done.stderr) or (
        "MISSING_PACKAGE" in done.stderr
    )


def test_a_base_in_few_bits_is_not_trained_itself(tmp_path: Path) -> None:
    from tunewright.core import config

    with pytest.raises(ConfigError, match=r"CONFIG_CONFLICT.*adapter.kind is none"):
        config.load(None, ["data.train=x.csv", "quantise=nf4", "adapter.kind=none"])
