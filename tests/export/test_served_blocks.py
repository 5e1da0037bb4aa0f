"""A run on the GGUF file that people serve: trained on its blocks, exported as an adapter for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from build import QUICK
from export import families
from gguf import GGUFReader

from tunewright import api
from tunewright.core.run_folder import Run, sha256


@pytest.mark.slow
def test_training_on_the_blocks_of_a_file_is_training_on_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one bit of the weights differs from a run on the dense numbers of the same file, and the exported adapter
    gives the verdict's answers on it."""
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / "cache"))
    rows = [{"text": f"lot {i} of {('fire', 'ice')[i % 2]}", "label": ("warm", "cold")[i % 2]} for i in range(60)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(name: str, model: Path, **settings: Any) -> Run:
        return Run(api.run(data, model=str(model), name=name, root=tmp_path, **{**QUICK, **settings}).path)

    base = families.save("smollm", tmp_path / "base")
    served = run("served", base, export__to=["gguf"], export__gguf=["q8_0"])
    (file,) = (served.path / "gguf").glob("*.gguf")
    assert any(t.tensor_type.name == "Q8_0" for t in GGUFReader(file).tensors)
    blocks = run("blocks", file, quantise="gguf", export__to=["lora-gguf"])
    dense = run("dense", file, export__to=["adapter"])
    assert sha256(blocks.weights) == sha256(dense.weights)
    facts = json.loads((blocks.path / "receipt.json").read_text())["model"]
    assert facts["packed"] == str(file)
    assert 0 < facts["packed_bytes"] < 4 * facts["parameters"]
    assert f"held in the blocks of {file}" in (blocks.path / "report.html").read_text()
    (check,) = json.loads((blocks.path / "export.json").read_text())
    assert check["reproduced"]["same"] == check["reproduced"]["rows"]
