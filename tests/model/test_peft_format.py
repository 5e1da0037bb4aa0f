"""Adapters of every kind, as PEFT reads them and as we read them back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from build import Folder, adapter_note

from tunewright.core.config import AdapterConfig
from tunewright.core.errors import TunewrightError
from tunewright.model import adapters, loading, peft_format


@pytest.mark.parametrize("kind", ["rslora", "dora"])
def test_peft_loads_the_other_adapters(kind: str, tmp_path: Path, model_folder: Folder) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    folder = model_folder("llama")
    config = AdapterConfig(kind=kind, rank=4, alpha=6.0)
    ours = loading.load(folder, torch.float32).module
    adapters.attach(ours, config, 0)
    for p in adapters.trainable(ours).values():
        torch.nn.init.normal_(p, std=0.1)
    peft_format.save(ours, config, tmp_path, str(folder), adapter_note("x"))
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), str(tmp_path)
    ).eval()
    again = loading.load(folder, torch.float32).module
    peft_format.load(again, tmp_path)
    ids = torch.tensor([list(range(5, 40))])
    with torch.no_grad():
        expected = ours(ids).logits
        assert torch.equal(again(ids).logits, expected)
        assert torch.allclose(theirs(ids).logits, expected, atol=1e-5)
    with pytest.raises(TunewrightError, match="ADAPTER_BASE_MISMATCH"):
        peft_format.load(loading.load(folder, torch.float32).module, tmp_path, "mine")
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**written, "r": 3}))
    with pytest.raises(TunewrightError, match="ADAPTER_CORRUPT"):
        peft_format.load(loading.load(folder, torch.float32).module, tmp_path)
