"""Scripts that start vLLM, llama-server and SGLang with the run's exports, and a compose file, with the numbers filled
in."""

from __future__ import annotations

from pathlib import Path

from tunewright.core.run_folder import write_atomic
from tunewright.export.bundles import ollama
from tunewright.export.bundles.bundle import Bundle, BundleInputs
from tunewright.export.templating import render

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def write(inputs: BundleInputs, folder: Path) -> None:
    from tunewright.model import loading

    source = inputs.source
    adapter, base = source.plan.adapter, (loading.hub_id(source.facts.name) or "").partition("@")
    rank = next((rank for rank in VLLM_RANKS if rank >= adapter.rank), None)
    # With weights that the Hub lacks, only the merged model is certain to be the one that was evaluated.
    lora = bool(base[0] and rank and inputs.export("adapter").is_dir() and adapter.kind in ("lora", "rslora"))
    arguments = source.template.kwargs
    messages = {"messages": [m.to_json() for m in inputs.messages("...")]}
    request = {
        "model": inputs.name,
        "temperature": 0,
        **(messages if inputs.chat else {"prompt": "..."}),
        **({"chat_template_kwargs": arguments} if arguments else {}),
    }
    values = {
        "name": inputs.name,
        "context": inputs.context,
        "rank": rank,
        "base": base[0],
        "revision": base[2],
        "arguments": arguments,
        "chat": inputs.chat,
        "gguf": ollama.gguf_file(inputs).name if inputs.export("gguf").is_dir() else None,
        "request": request,
    }
    scripts = {"vllm.sh": "vllm.sh", "sglang.sh": "sglang.sh"}
    if lora:
        scripts |= {"vllm-lora.sh": "vllm.sh", "sglang-lora.sh": "sglang.sh"}
    if values["gguf"]:
        scripts["llama-server.sh"] = "llama-server.sh"
    for script, template in scripts.items():
        write_atomic(folder / script, render(template, **values | {"lora": "-lora" in script}))
        (folder / script).chmod(0o755)
    write_atomic(folder / "compose.yaml", render("compose.yaml", **values))
    write_atomic(folder / "README.md", render("serve.md", **values, scripts=sorted(scripts)))


SERVE = Bundle(kind="serve", needs=("merged",), write=write)
