"""An adapter on disk: PEFT's adapter_config.json and adapter_model.safetensors, and tunewright.json with the hashes of
these files and of the base, which PEFT does not store. An adapter is read completely or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tunewright.core import records
from tunewright.core.config import AdapterConfig
from tunewright.core.errors import ModelError, RunError
from tunewright.core.records import AdapterNote
from tunewright.core.run_folder import sha256, write_atomic, write_json
from tunewright.model.adapters import LoRALinear, adapted, attach
from tunewright.model.frozen.packed import Linear
from tunewright.model.heads.linear import NAME, head_of

_PREFIX = "base_model.model."
_HEAD = f"{_PREFIX}{NAME}.weight"
_CONFIG, _TENSORS, _NOTE = "adapter_config.json", "adapter_model.safetensors", "tunewright.json"
# What an adapter_config.json may say without changing what is computed, or that `load` obeys. Anything else is refused.
_KNOWN = {
    *(
        "peft_type",
        "task_type",
        "r",
        "lora_alpha",
        "lora_dropout",
        "use_rslora",
        "use_dora",
        "target_modules",
        "exclude_modules",
    ),
    *("base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping", "init_lora_weights"),
    *("layers_to_transform", "layers_pattern", "runtime_config", "megatron_core"),
}


def save(model: nn.Module, config: AdapterConfig, folder: Path, base: str, note: AdapterNote) -> None:
    """Write the adapter, and the head, if there is one, as PEFT does, then tunewright.json: ``note`` with the hashes of
    the files.

    rsLoRA is written as LoRA with an alpha that gives the same scaling factor: some programs do not read `use_rslora`
    (llama.cpp's converter, SGLang).
    """
    from safetensors.torch import save as to_bytes

    tensors = state(model)
    assert tensors, "nothing is adapted"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / _TENSORS, to_bytes(tensors, metadata={"format": "pt"}))
    write_json(
        folder / _CONFIG,
        {
            "peft_type": "LORA",
            "task_type": "SEQ_CLS" if _HEAD in tensors else "CAUSAL_LM",
            "base_model_name_or_path": base,
            "inference_mode": True,
            "r": config.rank,
            "lora_alpha": next(iter(adapted(model).values())).scaling * config.rank,
            "lora_dropout": config.dropout,
            "bias": "none",
            "fan_in_fan_out": False,
            "use_rslora": False,
            "use_dora": config.kind == "dora",
            "init_lora_weights": True,
            "target_modules": sorted(adapted(model)),
            "modules_to_save": [NAME] if _HEAD in tensors else None,
            "rank_pattern": {},
            "alpha_pattern": {},
        },
    )
    files = {name: sha256(folder / name) for name in (_CONFIG, _TENSORS)}
    records.write(folder / _NOTE, note.model_copy(update={"files": files}))


def state(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's tensors, and the head's, under PEFT's names, in float32."""
    tensors = {f"{_PREFIX}{name}{end}": t for name, layer in adapted(model).items() for end, t in _parts(layer).items()}
    if (head := head_of(model)) is not None:
        tensors[_HEAD] = head.weight
    return {k: v.detach().float().contiguous().cpu() for k, v in tensors.items()}


def _parts(layer: LoRALinear) -> dict[str, Tensor]:
    plain: dict[str, Tensor] = {".lora_A.weight": layer.lora_A, ".lora_B.weight": layer.lora_B}
    return plain if layer.magnitude is None else plain | {".lora_magnitude_vector": layer.magnitude}


def load(model: Any, folder: Path, base_sha256: str | None = None) -> None:
    """Attach a saved adapter, of ours or of PEFT's. Raises ADAPTER_BASE_MISMATCH, ADAPTER_CORRUPT or
    ADAPTER_UNSUPPORTED, leaving the model untouched."""
    config, tensors = _read(folder)
    _untouched(folder, base_sha256)
    head_CD = tensors.pop(_HEAD, None)
    names = {key.removeprefix(_PREFIX).rpartition(".lora_")[0] for key in tensors}
    linear = {name for name, layer in model.named_modules() if isinstance(layer, Linear)}
    for name in sorted(names - linear):
        raise _other_base(folder, f"the adapter is for a layer {name}, which this base does not have")
    wanted = _shapes(model, names, config)
    for key in sorted(set(wanted) ^ set(tensors)):
        raise _corrupt(folder, f"the tensor {key} is {'missing' if key in wanted else 'not part of the adapter'}")
    for key, (shape, rank_at) in wanted.items():
        actual = tuple(tensors[key].shape)
        if actual != shape:
            other = [i for i in range(len(shape)) if i != rank_at and actual[i : i + 1] != shape[i : i + 1]]
            what = f"{key} has shape {list(actual)}, not {list(shape)}"
            raise _other_base(folder, what) if other and len(actual) == len(shape) else _corrupt(folder, what)
        if not torch.isfinite(tensors[key]).all():
            raise _corrupt(folder, f"{key} contains NaN or infinite values")
    if head_CD is not None and head_CD.shape[1] != model.get_output_embeddings().weight.shape[1]:
        raise _other_base(folder, f"its head reads {head_CD.shape[1]} numbers")
    attach(model, config.model_copy(update={"targets": sorted(names)}), 0, 0 if head_CD is None else len(head_CD))
    with torch.no_grad():
        if head_CD is not None:
            getattr(model, NAME).weight.copy_(head_CD)
        for name, layer in adapted(model).items():
            for end, parameter in _parts(layer).items():
                parameter.copy_(tensors[f"{_PREFIX}{name}{end}"])
    model.requires_grad_(False)


def _read(folder: Path) -> tuple[AdapterConfig, dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        written = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / _TENSORS)
        head = written.get("modules_to_save") == [NAME] and _HEAD in tensors
        known = {*_KNOWN, "modules_to_save"} if head else _KNOWN
        strange = sorted(k for k, v in written.items() if v and v != "none" and k not in known)
        if strange or written["peft_type"] != "LORA":
            option = f"{strange[0]}={written[strange[0]]!r}" if strange else f"peft_type={written['peft_type']!r}"
            raise ModelError(
                "ADAPTER_UNSUPPORTED",
                f"the adapter needs {option[:200]}, which this loader does not support.",
                where=str(folder),
                fix="load it with PEFT and merge it there; then use the merged model.",
            )
        kind: Literal["lora", "rslora", "dora"] = "dora" if written.get("use_dora") else "lora"
        config = AdapterConfig(
            kind="rslora" if written.get("use_rslora") and kind == "lora" else kind,
            rank=written["r"],
            alpha=float(written["lora_alpha"]),
            dropout=float(written.get("lora_dropout", 0.0)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise _corrupt(folder, f"cannot be read: {str(error).splitlines()[0][:200]}") from None
    return config, tensors


def _untouched(folder: Path, base_sha256: str | None) -> None:
    """An edited rank shows in the shapes, an edited alpha in nothing but the hash."""
    if not (folder / _NOTE).is_file():
        return
    try:
        note = records.read(folder / _NOTE, AdapterNote)
        changed = sorted(n for n in (_CONFIG, _TENSORS) if sha256(folder / n) != note.files.get(n))
    except OSError as error:
        raise _corrupt(folder, f"cannot be read: {error}") from None
    except RunError as error:
        raise _corrupt(folder, f"{_NOTE} cannot be read: {error.problems[0].message.removesuffix('.')}") from None
    if changed:
        raise _corrupt(folder, f"{changed[0]} does not match its checksum")
    if base_sha256 is not None and note.base_sha256 != base_sha256:
        raise _other_base(
            folder, f"the adapter was trained on base model {note.base_sha256[:12]}; this base is {base_sha256[:12]}"
        )


def _shapes(model: Any, names: set[str], config: AdapterConfig) -> dict[str, tuple[tuple[int, ...], int | None]]:
    """The shape that every tensor must have, and which of its axes is the rank."""
    shapes: dict[str, tuple[tuple[int, ...], int | None]] = {}
    for name in names:
        layer = model.get_submodule(name)
        outputs, inputs = layer.out_features, layer.in_features
        shapes[f"{_PREFIX}{name}.lora_A.weight"] = ((config.rank, inputs), 0)
        shapes[f"{_PREFIX}{name}.lora_B.weight"] = ((outputs, config.rank), 1)
        if config.kind == "dora":
            shapes[f"{_PREFIX}{name}.lora_magnitude_vector"] = ((outputs,), None)
    return shapes


def _corrupt(folder: Path, what: str) -> ModelError:
    return ModelError("ADAPTER_CORRUPT", f"{what}.", where=str(folder), fix="re-export or re-download it.")


def _other_base(folder: Path, what: str) -> ModelError:
    return ModelError(
        "ADAPTER_BASE_MISMATCH", f"{what}.", where=str(folder), fix="load it on the model it was trained on."
    )
