"""The adapter in the form of mlx-lm: the same matrices, transposed, with the LoRA scaling factor as one number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.core.config import Plan
from tunewright.core.run_folder import read_json, write_atomic, write_json
from tunewright.export.bundles.bundle import Bundle, BundleInputs
from tunewright.export.templating import render

if TYPE_CHECKING:
    from tunewright.model.facts import Facts

# mlx-lm ignores tensors that it has no layer for; in these families its layers have the names of transformers' layers.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
PARTS = {"A.weight": "lora_a", "B.weight": "lora_b", "magnitude_vector": "m"}


def write(inputs: BundleInputs, folder: Path) -> None:
    from safetensors.numpy import load_file, save

    source, adapter = inputs.source, inputs.export("adapter")
    config, tensors, layers = read_json(adapter / "adapter_config.json"), {}, set()
    for key, value in load_file(adapter / "adapter_model.safetensors").items():
        layer, _, part = key.removeprefix("base_model.model.").rpartition(".lora_")
        tensors[f"{layer}.{PARTS[part]}"] = value.T.copy()
        layers.add(re.sub(r"^model\.layers\.\d+\.", "", layer))
    rank = config["r"]
    parameters = {
        "rank": rank,
        "scale": config["lora_alpha"] / (rank**0.5 if config["use_rslora"] else rank),
        "dropout": 0.0,
        "keys": sorted(layers),
    }
    kind = "dora" if config["use_dora"] else "lora"
    write_atomic(folder / "adapters.safetensors", save(tensors, metadata={"format": "mlx"}))
    write_json(
        folder / "adapter_config.json",
        {"fine_tune_type": kind, "num_layers": source.facts.layers, "lora_parameters": parameters},
    )
    base = config["base_model_name_or_path"]
    write_atomic(folder / "README.md", render("mlx.md", name=inputs.name, base=base, system=inputs.system))


def unsupported(plan: Plan, facts: Facts) -> str | None:
    if plan.adapter.kind == "none":
        return "all weights were trained, so there is no adapter; mlx-lm loads the merged export"
    if facts.model_type not in FAMILIES:
        return f"only of {', '.join(FAMILIES)} are mlx-lm's layers known to have the names of transformers' layers"
    return None


MLX = Bundle(kind="mlx", needs=("adapter",), write=write, unsupported=unsupported)
