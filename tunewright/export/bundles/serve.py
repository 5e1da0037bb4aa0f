"""Scripts that start vLLM, SGLang and llama-server with the run's exports, and a compose file, with the numbers filled
in."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from tunewright.core.locations import is_hub_model
from tunewright.core.run_folder import write_atomic
from tunewright.core.sampling import Sampling
from tunewright.export.bundles import ollama
from tunewright.export.bundles.bundle import Bundle, BundleInputs, Readme
from tunewright.export.templating import render

PORTS = {"vllm": 8000, "vllm-lora": 8000, "sglang": 30000, "llama-server": 8080}
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
ADAPTER_NOTE = "`vllm-lora.sh` serves the adapter on its base model, `vllm.sh` the merged weights."


def write(inputs: BundleInputs, folder: Path) -> Readme:
    name, template = inputs.name, inputs.source.template
    for script, words in _commands(inputs).items():
        command = f'exec {shlex.join(words)} --port "${{PORT:-{PORTS[script]}}}" "$@"'
        write_atomic(folder / f"{script}.sh", f'#!/bin/sh\ncd "$(dirname "$0")/.." || exit 1\n{command}\n')
        (folder / f"{script}.sh").chmod(0o755)
    gguf = ollama.gguf_file(inputs.source) is not None
    write_atomic(folder / "compose.yaml", render("compose.yaml", gguf=gguf))
    chat = bool(template.tokenizer.chat_template)
    body: dict[str, object] = {"messages": inputs.messages("...")} if chat else {"prompt": "..."}
    body |= {
        "model": name,
        **_choosing(inputs.sampling),
        **({"chat_template_kwargs": template.kwargs} if template.kwargs else {}),
    }
    scripts = [file.name for file in sorted(folder.glob("*.sh"))]
    first = scripts[0].removesuffix(".sh")
    url = f"http://localhost:{PORTS[first]}/v1/{'chat/completions' if chat else 'completions'}"
    request = f"curl -s {url} -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"
    ports = ", ".join(f"`{script}` listens on port {PORTS[script.removesuffix('.sh')]}" for script in scripts)
    notes = (
        f"Start one of them; each stays in the foreground. {ports}; `PORT=... ./{scripts[0]}` chooses another. Further "
        "arguments are passed on.",
        f"The scripts read the folders beside this one ({', '.join(_needed(inputs))}): copy these too.",
        *((ADAPTER_NOTE,) if "vllm-lora.sh" in scripts else ()),
        "Send requests in the form of the curl command above: the same system message, and the values with which the "
        "model was evaluated.",
    )
    commands = [*(f"./{script}" for script in scripts), "docker compose --profile vllm up", request]
    return Readme(f"{name}: servers", commands, notes)


def _choosing(how: Sampling) -> dict[str, float]:
    """How tokens are chosen, in a request."""
    drawn = {"top_p": 1.0} if how.temperature else {}
    penalty = {"repetition_penalty": how.repetition_penalty} if how.repetition_penalty != 1 else {}
    return {"temperature": how.temperature or 0, **drawn, **penalty}


def _needed(inputs: BundleInputs) -> list[str]:
    return [kind for kind in ("adapter", "merged", "gguf") if kind in inputs.source.config.export.to]


def _commands(inputs: BundleInputs) -> dict[str, list[str]]:
    """The command of each script, to be run in the run folder, without its port."""
    name, context, source = inputs.name, str(inputs.context), inputs.source
    adapter, gguf = source.plan.adapter, ollama.gguf_file(source)
    arguments = [json.dumps(source.template.kwargs)] if source.template.kwargs else []
    how = inputs.sampling
    chosen = ["--generation-config", "vllm", "--override-generation-config", json.dumps(_choosing(how))]
    vllm = ["--max-model-len", context, *chosen, *(["--default-chat-template-kwargs", *arguments] if arguments else [])]
    sglang = ["python3", "-m", "sglang.launch_server", "--model-path", "merged", "--sampling-defaults", "openai"]
    commands = {
        "vllm": ["vllm", "serve", "merged", "--served-model-name", name, *vllm],
        "sglang": [*sglang, "--served-model-name", name, "--context-length", context],
    }
    base, _, revision = source.facts.name.partition("@")
    exported = adapter.rank * (1 if adapter.init == "zero" else 2)
    rank = next((rank for rank in VLLM_RANKS if rank >= exported), None)
    # With a base that the Hub lacks, only the merged model is certain to be the one that was evaluated.
    plain = adapter.kind in ("lora", "rslora") and adapter.uniform and source.facts.packed != "nf4"
    if is_hub_model(base) and rank and plain and "adapter" in source.config.export.to:
        lora = ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"{name}=adapter"]
        lora += ["--revision", revision] if revision else []
        lora += ["--chat-template", "adapter/chat_template.jinja"] if source.template.tokenizer.chat_template else []
        commands["vllm-lora"] = ["vllm", "serve", base, *lora, *vllm]
    if gguf is not None:
        llama = [*llama_server(["-m", f"gguf/{gguf.name}"], how, inputs.context), "--alias", name]
        commands["llama-server"] = [*llama, *(["--chat-template-kwargs", *arguments] if arguments else []), "-np", "1"]
    return commands


def llama_server(files: Sequence[str], how: Sampling, context: int) -> list[str]:
    """The command that serves a model as it was evaluated. ``files``: the arguments that name them, such as
    `-m FILE`."""
    command = ["llama-server", *files, "-c", str(context), "--jinja", "--temp", f"{how.temperature:g}"]
    command += ["--top-k", "0", "--top-p", "1", "--min-p", "0"] if how.temperature else []
    if how.repetition_penalty != 1:
        command += ["--repeat-penalty", f"{how.repetition_penalty:g}", "--repeat-last-n", "-1"]
    # Keys and values are cached in F16 otherwise, and flash attention rounds them to F16 on a GPU.
    return [*command, *(["-ctk", "f32", "-ctv", "f32", "-fa", "off"] if files[-1].endswith("F32.gguf") else [])]


SERVE = Bundle(kind="serve", needs=("merged",), write=write)
