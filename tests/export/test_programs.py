"""Bundles in the programs that they are for. Each has its own environment, whose Python a variable names:

python -m venv mlx && mlx/bin/pip install "mlx[cpu]==0.32.4" mlx-lm==0.32.2        MLX_PYTHON=mlx/bin/python
python -m venv onnx && onnx/bin/pip install onnxruntime-genai onnx onnx-ir torch transformers
                                                                                   ONNX_PYTHON=onnx/bin/python
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from build import adapter_note, byte_tokenizer, plan_of, tiny_model
from report import records as made

from tunewright.core.config import AdapterConfig, load
from tunewright.core.run_folder import read_json, write_json
from tunewright.export import bundles, merged
from tunewright.export.bundles import onnx
from tunewright.export.kind import TrainedRun
from tunewright.model import adapters, loading, peft_format
from tunewright.model.facts import read_facts
from tunewright.tokens.template import load_template

IDS = [5, 66, 77, 32, 101, 9, 200, 33]
MLX = """
import sys, json, numpy as np, mlx.core as mx
from mlx_lm import load
base, folder, ids = sys.argv[1:]
answers = []
for adapter in (None, folder):
    model, _ = load(base, adapter_path=adapter)
    answers.append(np.array(model(mx.array([json.loads(ids)])).astype(mx.float32))[0])
np.save(folder + "/logits.npy", np.stack(answers))
"""
ONNX = """
import sys, json, numpy as np, onnxruntime_genai as og
folder, ids = sys.argv[1:]
model = og.Model(folder)
options = og.GeneratorParams(model)
options.set_search_options(do_sample=False, max_length=64)
generator = og.Generator(model, options)
generator.append_tokens(json.loads(ids))
np.save(folder + "/logits.npy", np.array(generator.get_output("logits"))[0, -1])
"""


def model_of(family: str, folder: Path) -> Path:
    """The folder of the embedded model, or of a tiny one with grouped queries."""
    if family.startswith("smollm2"):
        return loading.resolve(family)
    tokenizer = byte_tokenizer()
    tiny_model(family, vocabulary=len(tokenizer), hidden_size=64, head_dim=16, num_key_value_heads=2).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


def source_of(tmp_path: Path, model: Path, kind: str, adapter: AdapterConfig) -> TrainedRun:
    """A run folder with records of another run; only the adapter and the model are this one's."""
    run = made.write(tmp_path / "one", made.everything())
    plan = plan_of(adapter=adapter)
    return TrainedRun(run, load(None, export__to=[kind]), plan, read_facts(str(model)), load_template(model))


def run(python: str, code: str, *words: str) -> None:
    done = subprocess.run([os.environ[python], "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def needs(variable: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(variable not in os.environ, reason=f"{variable} is not set")


@pytest.mark.slow
@needs("MLX_PYTHON")
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "smollm2-135m"])
def test_mlx_lm_answers_as_the_tuned_model(tmp_path: Path, family: str, kind: str) -> None:
    """The base and the base with the adapter, every logit."""
    folder = model_of(family, tmp_path / "model")
    module = loading.load(folder, torch.float32).module
    ids = torch.tensor([IDS])
    before = module(ids).logits[0].detach().numpy()
    config = AdapterConfig(kind=kind, rank=6, alpha=9.0)  # type: ignore[arg-type]
    adapters.attach(module, config, seed=0)
    with torch.no_grad():
        for p in adapters.trainable(module).values():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.02)
        after = module(ids).logits[0].numpy()
    source = source_of(tmp_path, folder, "mlx", config)
    peft_format.save(module, config, source.run.adapter, "base", adapter_note("0" * 64))
    bundles.write(source, [])
    base = tmp_path / "base"
    base.mkdir()
    for file in folder.iterdir():
        (base / file.name).symlink_to(file)
    described = read_json(folder / "config.json")
    (base / "config.json").unlink()  # models of the Hub have rope_theta; transformers 5 writes rope_parameters
    write_json(base / "config.json", {**described, "rope_theta": described["rope_parameters"]["rope_theta"]})
    run("MLX_PYTHON", MLX, str(base), str(source.run.path / "mlx"), json.dumps(IDS))
    base_logits, tuned_logits = np.load(source.run.path / "mlx" / "logits.npy")
    print(f"{family} {kind}: {np.abs(base_logits - before).max():.1e} {np.abs(tuned_logits - after).max():.1e}")  # noqa: T201
    np.testing.assert_allclose(base_logits, before, atol=2e-3)
    np.testing.assert_allclose(tuned_logits, after, atol=2e-3)
    assert np.abs(after - before).max() > 0.05, "the adapter changes something"


@pytest.mark.slow
@needs("ONNX_PYTHON")
@pytest.mark.parametrize("family", ["llama", "qwen2", "smollm2-135m"])
def test_onnx_runtime_answers_as_the_merged_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    folder = model_of(family, tmp_path / "model")
    module = loading.load(folder, torch.float32).module
    source = source_of(tmp_path, folder, "onnx", AdapterConfig())
    merged.save(module, source.template, source.run.merged, "float32")
    monkeypatch.setattr(onnx.sys, "executable", os.environ["ONNX_PYTHON"])
    bundles.write(source, [])
    run("ONNX_PYTHON", ONNX, str(source.run.path / "onnx"), json.dumps(IDS))
    expected = module(torch.tensor([IDS])).logits[0, -1].detach().numpy()
    actual = np.load(source.run.path / "onnx" / "logits.npy")
    print(f"{family}: {np.abs(actual - expected).max():.1e}")  # noqa: T201
    np.testing.assert_allclose(actual, expected, atol=2e-3)
