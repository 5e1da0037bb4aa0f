"""Each bundle is written from a finished run, and what it says is what the run's own code does."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export.modelfile import parse
from safetensors.numpy import load_file

from tunewright import api
from tunewright.core import records
from tunewright.core.config import AdapterConfig, Plan, load
from tunewright.core.errors import ConfigError, MissingExtra, TrainError
from tunewright.core.records import ProtocolRecord, Receipt
from tunewright.core.run_folder import Run, read_json, write_json
from tunewright.core.yaml12 import parse_yaml
from tunewright.data.messages import Message, Prompt
from tunewright.export import EXPORTS, KINDS, bundles
from tunewright.export.bundles import onnx, serve
from tunewright.export.kind import TrainedRun
from tunewright.model import adapters, loading, peft_format
from tunewright.model.facts import read_facts
from tunewright.tokens.template import load_template, render

GGUF = "labels-F16.gguf"


def source_of(result: api.Result, folder: Path, *kinds: str) -> TrainedRun:
    """A run of its own with the finished run's exports and records, and a file in place of a GGUF export."""
    run = Run(folder / "labels")
    run.path.mkdir()
    for name in ("adapter", "merged", "receipt.json", "protocol.json", "plan.json"):
        (run.path / name).symlink_to(result.path / name)
    (run.path / "gguf").mkdir()
    (run.path / "gguf" / GGUF).write_bytes(b"GGUF" * 9)
    (run.path / "gguf" / "labels-Q8_0.gguf").write_bytes(b"GGUF")
    config = load(result.path / "config.yaml", [f"export.to=[{', '.join(('adapter', 'merged', 'gguf', *kinds))}]"])
    facts = read_facts(config.model)
    plan = records.read(run.plan, Plan)
    return TrainedRun(run, config, plan, facts, load_template(Path(facts.path), config.template, config.date))


def with_instruction(source: TrainedRun, instruction: str | None) -> None:
    receipt = read_json(source.run.receipt)
    source.run.receipt.unlink()
    write_json(source.run.receipt, {**receipt, "instruction": instruction})


def test_the_ollama_bundle_serves_the_run(tmp_path: Path, labelled: api.Result) -> None:
    source = source_of(labelled, tmp_path, "ollama")
    bundles.write(source, [source.template.eos])
    folder = source.run.path / "ollama"
    commands = parse((folder / "Modelfile").read_text(encoding="utf-8"))
    values: dict[str, Any] = dict(commands)
    model = folder / values["model"]
    assert model.samefile(source.run.path / "gguf" / GGUF), "the most precise one, and no copy"
    assert values["system"] == records.read(source.run.receipt, Receipt).instruction == "warm or cold?"
    assert (values["temperature"], values["stop"]) == ("0", "<|im_end|>")
    assert "template" not in values
    longest = max(x.tokens_longest for x in records.read(source.run.receipt, Receipt).lengths.values())
    answer = records.read(source.run.protocol, ProtocolRecord).max_new_tokens
    assert longest + answer <= int(values["num_ctx"]) or int(values["num_ctx"]) == source.facts.context
    parameters = json.loads((folder / "params").read_text())
    assert parameters == {"temperature": 0, "num_ctx": int(values["num_ctx"]), "stop": ["<|im_end|>"]}
    assert (folder / "system").read_text(encoding="utf-8") == "warm or cold?"
    go = (folder / "template").read_text(encoding="utf-8")
    assert go.startswith("{{ if .System }}<|im_start|>system"), "the BOS token that nobody else writes"
    readme = (folder / "README.md").read_text(encoding="utf-8")
    rendered = render(source.template, Prompt((Message("system", "warm or cold?"), Message("user", "Ping?"))), True)
    assert json.dumps(rendered) in readme
    request = json.loads(shlex.split(readme.split("/chat -d ")[1])[0])
    assert request["_debug_render_only"]
    assert request["messages"] == [{"role": "user", "content": "Ping?"}], "the system message is the Modelfile's"


def test_a_system_message_that_no_modelfile_can_hold_is_set_through_the_api(
    tmp_path: Path, labelled: api.Result
) -> None:
    source = source_of(labelled, tmp_path, "ollama")
    text = 'Answer in """words"""\nand with\u00a0care.'
    with_instruction(source, text)
    bundles.write(source, [source.template.eos])
    folder = source.run.path / "ollama"
    assert "system" not in dict(parse((folder / "Modelfile").read_text(encoding="utf-8")))
    request = json.loads((folder / "system.json").read_text(encoding="utf-8"))
    assert request == {"model": "labels", "from": "labels", "system": text}
    assert "api/create -d @system.json" in (folder / "README.md").read_text(encoding="utf-8")


def started(script: Path, folder: Path, **environment: str) -> tuple[list[str], Path]:
    """The arguments and the working directory of the program that a script starts."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name in ("vllm", "llama-server", "python3"):
        (programs / name).write_text('#!/bin/sh\npwd\nfor a in "$@"; do printf "%s\\n" "$a"; done\n')
        (programs / name).chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    done = subprocess.run(
        [script, "--extra", "two words"], env={"PATH": path, **environment}, capture_output=True, text=True, check=True
    )
    where, *words = done.stdout.splitlines()
    return words, Path(where)


def value(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_the_scripts_start_servers_with_the_numbers_of_the_run(tmp_path: Path, labelled: api.Result) -> None:
    source = source_of(labelled, tmp_path, "serve")
    template = replace(source.template, kwargs={"enable_thinking": False})
    plan = source.plan.model_copy(update={"adapter": AdapterConfig(rank=9)})
    hub = replace(source.facts, name="Qwen/Qwen2.5-0.5B@v1")
    bundles.write(replace(source, template=template, plan=plan, facts=hub), [source.template.eos])
    folder = source.run.path / "serve"
    scripts = sorted(path.name for path in folder.glob("*.sh"))
    assert scripts == ["llama-server.sh", "sglang.sh", "vllm-lora.sh", "vllm.sh"]
    called = {script: started(folder / script, tmp_path, PORT="7") for script in scripts}
    context = str(bundles.gather(source, []).context)
    for words, where in called.values():
        assert where.samefile(source.run.path), "paths are relative to the run folder"
        assert words[-2:] == ["--extra", "two words"]
        assert value(words, "--port") == "7"
    vllm, lora, llama = (called[f"{name}.sh"][0] for name in ("vllm", "vllm-lora", "llama-server"))
    assert vllm[:4] == ["serve", "merged", "--served-model-name", "labels"]
    assert value(vllm, "--max-model-len") == value(llama, "-c") == context
    assert value(called["sglang.sh"][0], "--context-length") == context
    assert json.loads(value(vllm, "--default-chat-template-kwargs")) == {"enable_thinking": False}
    assert json.loads(value(llama, "--chat-template-kwargs")) == {"enable_thinking": False}
    assert json.loads(value(vllm, "--override-generation-config")) == {"temperature": 0}
    assert lora[:2] == ["serve", "Qwen/Qwen2.5-0.5B"]
    assert (value(lora, "--revision"), value(lora, "--lora-modules")) == ("v1", "labels=adapter")
    assert value(lora, "--max-lora-rank") == "16", "the next rank that vLLM accepts"
    for path in (value(lora, "--chat-template"), value(llama, "-m"), "merged", "adapter"):
        assert (source.run.path / path).exists()
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert "http://localhost:8080/" in readme, "the port of the first script"
    assert "adapter, merged, gguf" in readme, "what the scripts read"
    request = readme.split(" -d ")[1]
    body = json.loads(shlex.split(request.split("\n```")[0])[0])
    assert body["messages"][0] == {"role": "system", "content": "warm or cold?"}
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


def test_what_is_stored_in_float32_is_also_cached_in_it(tmp_path: Path, labelled: api.Result) -> None:
    """llama-server's cache is in F16 otherwise, which `tunewright verify` would show as another answer."""
    source = source_of(labelled, tmp_path, "serve")
    assert "-ctk" not in serve._commands(bundles.gather(source, []))["llama-server"]
    for file in (source.run.path / "gguf").iterdir():
        file.unlink()
    (source.run.path / "gguf" / "labels-F32.gguf").write_bytes(b"GGUF")
    command = serve._commands(bundles.gather(source, []))["llama-server"]
    assert (value(command, "-ctk"), value(command, "-ctv"), value(command, "-fa")) == ("f32", "f32", "off")


def test_an_adapter_is_not_served_on_a_base_that_the_hub_lacks(tmp_path: Path, labelled: api.Result) -> None:
    source = source_of(labelled, tmp_path, "serve")
    bundles.write(source, [])
    assert not (source.run.path / "serve" / "vllm-lora.sh").exists()
    for kind, rank in (("dora", 8), ("none", 8), ("lora", 4096)):
        plan = source.plan.model_copy(update={"adapter": AdapterConfig(kind=kind, rank=rank)})  # type: ignore[arg-type]
        changed = replace(source, plan=plan, facts=replace(source.facts, name="Qwen/Qwen2.5-0.5B"))
        assert "vllm-lora" not in serve._commands(bundles.gather(changed, []))


def test_the_compose_file_runs_the_scripts(tmp_path: Path, labelled: api.Result) -> None:
    source = source_of(labelled, tmp_path, "serve")
    bundles.write(source, [])
    folder = source.run.path / "serve"
    text = (folder / "compose.yaml").read_text(encoding="utf-8")
    services = parse_yaml(text, "compose.yaml")[0]["services"]
    assert services["vllm"]["volumes"] == [".:/run-folder/serve:ro", "../merged:/run-folder/merged:ro"], "no rows"
    assert "/run-folder/serve/vllm.sh" in text
    assert "/run-folder/serve/llama-server.sh" in text
    narrowed = load(None, export__to=["merged", "serve"])
    bundles.write(replace(source, config=narrowed, facts=replace(source.facts, name="A/B")), [])
    assert (source.run.path / "gguf" / GGUF).exists()
    assert "llama-server" not in (folder / "compose.yaml").read_text(encoding="utf-8"), "an older export's file"
    left = {path.name for path in folder.iterdir()}
    assert left == {"vllm.sh", "sglang.sh", "compose.yaml", "README.md"}, "the folder is written anew"


@pytest.mark.parametrize("bundle", ["ollama", "serve"])
def test_the_name_of_the_run_does_not_matter(tmp_path: Path, labelled: api.Result, bundle: str) -> None:
    """A GGUF file is called after its run; that of an adapter lies in another folder."""
    source = source_of(labelled, tmp_path, bundle)
    folder = source.run.path / "gguf"
    for file in folder.iterdir():
        file.rename(folder / file.name.replace("labels", "support-lora-r16"))
    bundles.write(source, [])
    texts = [path.read_text() for path in (source.run.path / bundle).iterdir() if path.suffix != ".gguf"]
    assert any("support-lora-r16-F16.gguf" in text for text in texts)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_the_mlx_adapter_changes_the_weights_as_ours_does(tmp_path: Path, labelled: api.Result, kind: str) -> None:
    """The oracle is our merge; mlx-lm computes `w + scale * (lora_b.T @ lora_a.T)`, and for DoRA scales its rows."""
    source = source_of(labelled, tmp_path, "mlx")
    base = loading.load(source.facts.path, torch.float32).module
    plain = {name: p.detach().numpy().copy() for name, p in base.named_parameters()}
    config = AdapterConfig(kind=kind, rank=4, alpha=6.0, targets=["q_proj", "layers.0.mlp.*"])  # type: ignore[arg-type]
    adapters.attach(base, config, seed=0)
    with torch.no_grad():
        for p in adapters.trainable(base).values():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    source.run.adapter.unlink()
    note = records.read(labelled.adapter / "tunewright.json", records.AdapterNote)
    peft_format.save(base, config, source.run.adapter, "base", note)
    plan = source.plan.model_copy(update={"adapter": config})
    bundles.write(replace(source, plan=plan), [])
    written = read_json(source.run.path / "mlx" / "adapter_config.json")
    tensors = load_file(source.run.path / "mlx" / "adapters.safetensors")
    parameters = written["lora_parameters"]
    readme = (source.run.path / "mlx" / "README.md").read_text(encoding="utf-8")
    assert source.facts.path not in readme, "no path of this machine"
    assert written["fine_tune_type"] == ("dora" if kind == "dora" else "lora")
    assert written["num_layers"] == source.facts.layers
    assert set(parameters["keys"]) == {"self_attn.q_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    adapters.merge(base)
    merged = {name: p.detach().numpy() for name, p in base.named_parameters()}
    layers = {name.rpartition(".")[0] for name in tensors}
    assert layers == {name.removesuffix(".weight") for name in merged if not np.array_equal(merged[name], plain[name])}
    for layer in layers:
        a, b = tensors[f"{layer}.lora_a"], tensors[f"{layer}.lora_b"]
        assert a.shape[1] == b.shape[0] == parameters["rank"]
        weight = plain[f"{layer}.weight"] + parameters["scale"] * (b.T @ a.T)
        if kind == "dora":
            weight *= (tensors[f"{layer}.m"] / np.linalg.norm(weight, axis=1))[:, None]
        np.testing.assert_allclose(weight, merged[f"{layer}.weight"], atol=1e-5)


def requires(source: TrainedRun, *kinds: str) -> None:
    config = load(None, export__to=list(kinds))
    bundles.require_supported(replace(source, config=config), [kind for kind in kinds if kind in EXPORTS])


def test_what_cannot_be_written_is_refused_before_training(tmp_path: Path, labelled: api.Result) -> None:
    source = source_of(labelled, tmp_path)
    full = replace(source, plan=source.plan.model_copy(update={"adapter": AdapterConfig(kind="none")}))
    requires(source, "adapter", "mlx", "merged", "serve")
    with pytest.raises(ConfigError, match="mlx bundle cannot be written: it is made from the adapter export") as caught:
        requires(source, "merged", "mlx")
    assert caught.value.where == "export.to"
    assert "add adapter to export.to" in str(caught.value)
    with pytest.raises(ConfigError, match="ollama bundle cannot be written: it is made from the gguf export"):
        requires(source, "merged", "ollama")
    with pytest.raises(ConfigError, match="there is no adapter"):
        requires(full, "merged", "mlx")
    with pytest.raises(ConfigError, match="only of llama"):
        requires(replace(source, facts=replace(source.facts, model_type="gpt2")), "adapter", "mlx")
    assert set(KINDS) == {*EXPORTS, *bundles.BUNDLES}


def test_onnx_needs_its_builder(tmp_path: Path, labelled: api.Result, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(labelled, tmp_path, "onnx")
    monkeypatch.setattr(onnx, "PACKAGES", ("no-such-builder",))
    with pytest.raises(MissingExtra, match="the onnx bundle requires the package no-such-builder"):
        requires(source, "merged", "onnx")
    half = "import sys; open(sys.argv[5] + '/model.onnx', 'w').close(); sys.exit('bad')"
    monkeypatch.setattr(onnx, "BUILDER", ["-c", half])
    with pytest.raises(TrainError, match="the builder of onnxruntime-genai failed"):
        bundles.write(source, [])
    assert not list(source.run.path.glob("*onnx*")), "nothing of a failed one is left"
