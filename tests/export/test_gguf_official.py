"""llama.cpp's own converters write the same files: every tensor, and every key of the model and its vocabulary.

The converters are those of the source archive of llama-cpp-python, fetched once (`scripts/llama_cpp.py`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from build import adapter_note
from export import families
from export.families import FAMILIES, adapted, bpe, run_of, trained_run
from gguf import GGUFReader

from tunewright.core.config import AdapterConfig
from tunewright.export import export, merged
from tunewright.export.gguf.lora import LORA_GGUF
from tunewright.export.gguf.model import GGUF
from tunewright.export.kind import TrainedRun
from tunewright.export.reload_check import CheckPrompt
from tunewright.model import loading, peft_format

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
# The official converter knows the splits of published vocabularies by a hash of their tokens; a tiny one has none.
CONVERT = """
import json, runpy, sys
split, *commands = json.loads(sys.argv[1])
sys.path.insert(0, commands[0][0].rpartition("/")[0])
from conversion.base import TextModel
if split:
    TextModel.get_vocab_base_pre = lambda self, tokenizer: split
for command in commands:
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
"""
# What the official converter infers about the model's name and origin, and ours does not write.
DESCRIPTIONS = ("general.name", "general.basename", "general.finetune", "general.size_label", "general.base_model")


@pytest.fixture(scope="session")
def official() -> Path:
    """The folder of llama.cpp's converters."""
    specification = importlib.util.spec_from_file_location("fetch", ROOT / "scripts" / "llama_cpp.py")
    assert specification is not None
    assert specification.loader is not None
    fetch = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(fetch)
    try:
        folder: Path = fetch.folder()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"llama.cpp's converters cannot be fetched: {str(error.stderr)[-200:]}")
    return folder


def run_scripts(official: Path, split: str, commands: list[list[str]]) -> None:
    """Run commands (script, words) in one process, which spends most of its time on imports. ``split``: in place of the
    one that the script infers, or ""."""
    environment = {**os.environ, "PYTHONPATH": str(official / "more"), "HF_HUB_OFFLINE": "1"}
    given = json.dumps([split, *([str(official / script), *words] for script, *words in commands)])
    command = [sys.executable, "-c", CONVERT, given]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def content(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(keys, tensors) of a file; of a tensor its type, shape and bytes."""
    reader = GGUFReader(file)
    keys = {k: f.contents() for k, f in reader.fields.items() if not k.startswith(("GGUF.", *DESCRIPTIONS))}
    data = {t.name: (t.tensor_type.name, t.shape.tolist(), t.data.tobytes()) for t in reader.tensors}
    return keys, data


def assert_equal(ours: Path, theirs: Path, more: dict[str, Any] | None = None) -> None:
    """``more``: keys that only our file has."""
    (our_keys, our_tensors), (their_keys, their_tensors) = content(ours), content(theirs)
    assert sorted(our_tensors) == sorted(their_tensors)
    assert [name for name in our_tensors if our_tensors[name] != their_tensors[name]] == []
    if template := our_keys.get("tokenizer.chat_template"):
        assert template.endswith("#}" + their_keys["tokenizer.chat_template"]), "marked, and otherwise the same"
        their_keys["tokenizer.chat_template"] = template
    assert our_keys == {**their_keys, **(more or {})}


def compare(source: TrainedRun, official: Path, tmp_path: Path, kinds: tuple[str, ...], split: str = "") -> None:
    module = loading.load(source.facts.path, torch.float32).module
    folder = tmp_path / "merged"
    merged.save(module, source.template, folder, "float32")
    theirs = {kind: tmp_path / f"theirs-{kind}.gguf" for kind in kinds}
    words = ["convert_hf_to_gguf.py", str(folder), "--outtype"]
    run_scripts(official, split, [[*words, kind, "--outfile", str(file)] for kind, file in theirs.items()])
    for kind, file in theirs.items():
        has_flag = "tokenizer.ggml.add_bos_token" in GGUFReader(file).fields
        more = {"general.sampling.temp": 0.0} | ({} if has_flag else {"tokenizer.ggml.add_bos_token": False})
        assert_equal(GGUF.write(source, module, tmp_path, kind), file, more)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tensor_and_every_key_is_the_official_one(name: str, official: Path, tmp_path: Path) -> None:
    source = run_of(families.save(name, tmp_path / "model"), tmp_path)
    compare(source, official, tmp_path, ("f32", "f16", "bf16", "q8_0"), FAMILIES[name].split)


def test_so_are_those_of_a_real_model_with_its_vocabulary(official: Path, tmp_path: Path) -> None:
    """Both sides infer how it splits text."""
    compare(run_of(loading.resolve(loading.EMBEDDED), tmp_path), official, tmp_path, ("f16", "q8_0"))


@pytest.mark.parametrize("name", ["smollm", "qwen2"])
def test_an_adapter_is_the_official_one(name: str, official: Path, tmp_path: Path) -> None:
    """For plain LoRA. For rsLoRA the official alpha is wrong: lora_alpha, where llama.cpp divides by the rank."""
    folder = families.save(name, tmp_path / "model")
    source = run_of(folder, tmp_path, AdapterConfig(rank=4, alpha=12.0))
    module, adapter, theirs = adapted(source), tmp_path / "adapter", tmp_path / "theirs.gguf"
    peft_format.save(module, source.plan.adapter, adapter, str(folder), adapter_note(source.facts.sha256))
    words = [str(adapter), "--base", str(folder), "--outfile", str(theirs), "--outtype", "f32"]
    run_scripts(official, "", [["convert_lora_to_gguf.py", *words]])
    ours = LORA_GGUF.write(source, module, tmp_path, "float32")
    assert_equal(ours, theirs, {"tunewright.base_sha256": source.facts.sha256})


def test_another_architecture_is_written_by_llama_cpp_and_verified(official: Path, tmp_path: Path) -> None:
    """StarCoder 2, through `export.llama_cpp`: the script there is the official one, with the name of the split."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer, model, source_folder = bpe("smollm"), tmp_path / "model", tmp_path / "llama.cpp"
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(
        "starcoder2", vocab_size=len(tokenizer), num_key_value_heads=2, sliding_window=None, **shape, **tokens
    )
    families.fill(AutoModelForCausalLM.from_config(config, dtype=torch.float32)).save_pretrained(model)
    tokenizer.save_pretrained(model)
    source_folder.mkdir()
    script = f"""
import sys
sys.path[:0] = [{str(official)!r}, {str(official / "more")!r}]
words = sys.argv[1:]
given = ["smollm", [{str(official / "convert_hf_to_gguf.py")!r}, *words]]
import json
sys.argv = ["-", json.dumps(given)]
{CONVERT}
"""
    (source_folder / "convert_hf_to_gguf.py").write_text(script)
    run = trained_run(
        model, tmp_path, export__to=["gguf"], export__gguf=["f32", "q8_0"], export__llama_cpp=str(source_folder)
    )
    checks = export.export(run, [CheckPrompt([1, 2, 3, 40])], [run.template.eos], ["it's 5 o'clock"])
    assert [(c.dtype, c.rows) for c in checks] == [("f32", 1), ("q8_0", 1)]
    assert checks[0].largest_difference < 1e-4
