"""The adapter in the form of mlx-lm: the same matrices, transposed, with the LoRA scaling factor as one number."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tunewright.core.config import Plan
from tunewright.core.locations import is_hub_model
from tunewright.core.run_folder import read_json, write_atomic, write_json
from tunewright.export.bundles.bundle import Bundle, BundleInputs, Readme

# mlx-lm ignores tensors that it has no layer for; in these families its layers have the names of transformers' layers.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
NOTE = "The base must be the one that the adapter was trained on. `mlx_lm.fuse` writes both as one model."
PENALTY = (
    "The run was evaluated with a repetition penalty of {:g}, for which the command has no option; requests to "
    "`mlx_lm.server` have `repetition_penalty`."
)
PARTS = {"A.weight": "lora_a", "B.weight": "lora_b", "magnitude_vector": "m"}


def write(inputs: BundleInputs, folder: Path) -> Readme:
    from safetensors.numpy import load_file, save

    adapter, tensors, layers = inputs.source.run.adapter, {}, set()
    config = read_json(adapter / "adapter_config.json")
    for key, value in load_file(adapter / "adapter_model.safetensors").items():
        layer, _, part = key.removeprefix("base_model.model.").rpartition(".lora_")
        tensors[f"{layer}.{PARTS[part]}"] = value.T.copy()
        layers.add(re.sub(r"^model\.layers\.\d+\.", "", layer))
    scale = config["lora_alpha"] / config["r"]  # of rsLoRA too: see `peft_format.save`
    parameters = {"rank": config["r"], "scale": scale, "dropout": 0.0, "keys": sorted(layers)}
    described = {"fine_tune_type": "dora" if config["use_dora"] else "lora", "lora_parameters": parameters}
    write_json(folder / "adapter_config.json", {**described, "num_layers": inputs.source.facts.layers})
    write_atomic(folder / "adapters.safetensors", save(tensors, metadata={"format": "mlx"}))
    base, system = inputs.source.facts.name.partition("@")[0], inputs.system
    options = f" --system-prompt {shlex.quote(system)}" if system else ""
    model = base if is_hub_model(base) else "BASE"
    how = inputs.sampling
    command = f"mlx_lm.generate --model {model} --adapter-path . --temp {how.temperature:g} --prompt ...{options}"
    notes = [NOTE, *([PENALTY.format(how.repetition_penalty)] if how.repetition_penalty != 1 else [])]
    return Readme(f"{inputs.name} in MLX", [command], notes)


def unsupported(plan: Plan, architecture: str) -> str | None:
    if plan.adapter.kind == "none":
        return "all weights were trained, so there is no adapter; mlx-lm loads the merged export"
    if plan.adapter.of_peft:
        return f"mlx-lm has no {plan.adapter.kind.removeprefix('peft:')}; it loads the merged export"
    if not plan.adapter.uniform:
        return "mlx-lm has one rank and scaling factor for all layers; it loads the merged export"
    known = f"only of {', '.join(FAMILIES)} are mlx-lm's layers known to have the names of transformers' layers"
    return None if architecture in FAMILIES else known


MLX = Bundle(kind="mlx", needs=("adapter",), write=write, unsupported=unsupported)
