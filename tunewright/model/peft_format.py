"""An adapter on disk: PEFT's adapter_config.json and adapter_model.safetensors, and tunewright.json with the hashes of
these files and of the base, which PEFT does not store. An adapter is read completely or not at all."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from tunewright.core import records
from tunewright.core.config import AdapterConfig
from tunewright.core.records import AdapterNote
from tunewright.core.run_folder import sha256, write_atomic, write_json
from tunewright.model.adapters import adapted, attach
from tunewright.model.adapting import peft_kinds
from tunewright.model.adapting.sizes import of_layer
from tunewright.model.adapting.stored import (
    CONFIG,
    HEAD,
    NOTE,
    OF_PEFT,
    PREFIX,
    TENSORS,
    StoredAdapter,
    corrupt,
    kind_of,
    other_base,
    read,
    untouched,
)
from tunewright.model.frozen.packed import Linear
from tunewright.model.heads.linear import NAME, head_of, width


def save(model: nn.Module, config: AdapterConfig, folder: Path, base: str, note: AdapterNote) -> None:
    """Write the adapter, and the head, if there is one, as PEFT does, then tunewright.json: ``note`` with the hashes of
    the files.

    rsLoRA is written as LoRA with an alpha that gives the same scaling factor: some programs do not read `use_rslora`
    (llama.cpp's converter, SGLang). PiSSA and OLoRA are written as LoRA of twice the rank, for the base as it is.
    """
    from safetensors.torch import save as to_bytes

    tensors, described = peft_kinds.files(model, base) if config.of_peft else (state(model), _described(model, config))
    assert tensors, "nothing is adapted"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / TENSORS, to_bytes(tensors, metadata={"format": "pt"}))
    write_json(folder / CONFIG, {**described, "base_model_name_or_path": base})
    files = {name: sha256(folder / name) for name in (CONFIG, TENSORS)}
    records.write(folder / NOTE, note.model_copy(update={"files": files}))


def _described(model: nn.Module, config: AdapterConfig) -> dict[str, object]:
    """The contents of adapter_config.json."""
    layers = adapted(model)
    ranks = {name: len(layer.factors()[0]) for name, layer in layers.items()}
    alphas = {name: layer.scaling * ranks[name] for name, layer in layers.items()}
    (rank, alpha), *_ = Counter(zip(ranks.values(), alphas.values(), strict=True)).most_common(1)[0]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if head_of(model) is None else "SEQ_CLS",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": config.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": config.kind == "dora",
        "init_lora_weights": True,
        "target_modules": sorted(layers),
        "modules_to_save": None if head_of(model) is None else [NAME],
        "rank_pattern": {re.escape(name): own for name, own in ranks.items() if own != rank},
        "alpha_pattern": {re.escape(name): own for name, own in alphas.items() if own != alpha},
    }


def state(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's tensors, and the head's, under PEFT's names, in float32."""
    tensors = {f"{PREFIX}{name}{end}": t for name, layer in adapted(model).items() for end, t in layer.named().items()}
    if (head := head_of(model)) is not None:
        tensors[HEAD] = head.weight
    return {k: v.detach().float().contiguous().cpu() for k, v in tensors.items()}


def load(model: nn.Module, folder: Path, base_sha256: str | None = None) -> None:
    """Attach a saved adapter, of ours or of PEFT's. Raises ADAPTER_BASE_MISMATCH, ADAPTER_CORRUPT or
    ADAPTER_UNSUPPORTED, leaving the model untouched."""
    if kind_of(folder) in OF_PEFT:
        untouched(folder, base_sha256)
        peft_kinds.load(model, folder)
        return
    stored = fitting(model, folder, base_sha256)
    head_CD = stored.tensors.get(HEAD)
    attach(model, stored.config, outputs=0 if head_CD is None else len(head_CD))
    with torch.no_grad():
        if head_CD is not None:
            getattr(model, NAME).weight.copy_(head_CD)
        for name, layer in adapted(model).items():
            for end, tensor in layer.named().items():
                tensor.copy_(stored.tensors[f"{PREFIX}{name}{end}"])
    model.requires_grad_(False)


def fitting(model: Any, folder: Path, base_sha256: str | None = None) -> StoredAdapter:
    """A stored LoRA adapter, if it fits the model. Raises what `load` does."""
    stored = read(folder, base_sha256)
    linear = {name for name, layer in model.named_modules() if isinstance(layer, Linear)}
    for name in sorted({*stored.config.targets} - linear):
        raise other_base(folder, f"the adapter is for a layer {name}, which this base does not have")
    wanted = _shapes(model, stored.config)
    head_CD = stored.tensors.get(HEAD)
    if head_CD is not None and head_CD.shape[1] != width(model):
        raise other_base(folder, f"its head reads {head_CD.shape[1]} numbers")
    for key in sorted(set(wanted) ^ (set(stored.tensors) - {HEAD})):
        raise corrupt(folder, f"the tensor {key} is {'missing' if key in wanted else 'not part of the adapter'}")
    for key, (shape, rank_at) in wanted.items():
        actual = tuple(stored.tensors[key].shape)
        if actual != shape:
            other = [i for i in range(len(shape)) if i != rank_at and actual[i : i + 1] != shape[i : i + 1]]
            what = f"{key} has shape {list(actual)}, not {list(shape)}"
            raise other_base(folder, what) if other and len(actual) == len(shape) else corrupt(folder, what)
        if not torch.isfinite(stored.tensors[key]).all():
            raise corrupt(folder, f"{key} contains NaN or infinite values")
    return stored


def _shapes(model: nn.Module, config: AdapterConfig) -> dict[str, tuple[tuple[int, ...], int | None]]:
    """The shape that every tensor must have, and which of its axes is the rank."""
    shapes: dict[str, tuple[tuple[int, ...], int | None]] = {}
    for name in config.targets:
        layer, rank = cast(Linear, model.get_submodule(name)), of_layer(config, name).rank
        outputs, inputs = layer.out_features, layer.in_features
        shapes[f"{PREFIX}{name}.lora_A.weight"] = ((rank, inputs), 0)
        shapes[f"{PREFIX}{name}.lora_B.weight"] = ((outputs, rank), 1)
        if config.kind == "dora":
            shapes[f"{PREFIX}{name}.lora_magnitude_vector"] = ((outputs,), None)
    return shapes
