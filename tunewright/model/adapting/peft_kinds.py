"""Adapters that PEFT computes (LoHa, LoKr, IA3, OFT, VeRA, ...): put on, switched off, saved, merged.

PEFT's layers take the places of linear layers, so that the module, its attention and the layouts of a pass remain; only
fused kernels do not know them. Everything else is asked of PEFT itself. Needs the package peft.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tunewright.core.config import AdapterConfig
from tunewright.core.errors import ConfigError, MissingExtra, ModelError
from tunewright.model.adapting.stored import CONFIG, TENSORS
from tunewright.model.frozen.packed import PackedLinear, replace_module

NAME = "default"  # PEFT's name of the only adapter of a model
ALPHA = {"randlora": "randlora_alpha"}  # the field of PEFT's config that `adapter.alpha` is, if it has another name
# Fields with which an adapter leaves the base as it is at the start; and IA3, all of whose factors are for outputs.
AS_BASE: dict[str, dict[str, object]] = {
    "c3a": {"init_weights": True},
    "fourierft": {"init_weights": True},
    "ia3": {"feedforward_modules": []},
}
# Fields of PEFT's configs that are decided elsewhere, or would train what is no part of the adapter.
NOT_SETTABLE = (
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "peft_version", "auto_mapping"),
    *("inference_mode", "init_weights", "bias", "modules_to_save", "exclude_modules", "r", "alpha", "randlora_alpha"),
)
# Frozen tensors that all layers have in common, which PEFT saves once, under the name of the model.
COMMON = ("vera_A", "vera_B", "randlora_A", "randlora_B")


def attach(model: nn.Module, config: AdapterConfig, names: list[str], seed: int) -> None:
    """Put the adapter on the layers ``names``. Raises CONFIG_CONFLICT with PEFT's reason if it cannot be."""
    peft, kind, printed = library(), config.kind.removeprefix("peft:"), io.StringIO()
    if any(isinstance(model.get_submodule(name), PackedLinear) for name in names):
        message = f"PEFT cannot put {kind} on weights that are held in blocks of few bits."
        raise ConfigError("CONFIG_CONFLICT", message, where="quantise", fix="choose lora, or quantise=none.")
    try:
        settings = _settings(config, names)
        # PEFT prints or warns where it computes something else than is asked, such as another size of a block.
        with torch.random.fork_rng(), warnings.catch_warnings(record=True) as warned, redirect_stdout(printed):
            warnings.simplefilter("always", UserWarning)
            torch.manual_seed(seed)
            peft.get_peft_model(model, settings, NAME, autocast_adapter_dtype=False)
        why = "\n".join([*(str(w.message) for w in warned if w.category is UserWarning), printed.getvalue()]).strip()
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        why = str(error) or type(error).__name__
    if why:
        message = f"PEFT refuses {kind}: {why.splitlines()[0].rstrip('.')[:300]}."
        fix = "change adapter.targets, adapter.rank or adapter.options."
        raise ConfigError("CONFIG_CONFLICT", message, where="adapter.kind", fix=fix)


def library() -> ModuleType:
    """The package peft. Raises MISSING_PACKAGE."""
    try:
        return importlib.import_module("peft")
    except ImportError:
        raise MissingExtra("peft", "adapters of PEFT", "pip install 'tunewright[peft]'") from None


def _settings(config: AdapterConfig, names: list[str]) -> object:
    """PEFT's own config. Raises CONFIG_UNKNOWN_KEY."""
    kind = config.kind.removeprefix("peft:")
    made = library().PEFT_TYPE_TO_CONFIG_MAPPING[kind.upper()]
    given: dict[str, object] = {"target_modules": names, "task_type": "CAUSAL_LM"}
    if "rank" in config.sizes:
        given["r"] = config.rank
    if "alpha" in config.sizes:
        given[ALPHA.get(kind, "alpha")] = int(config.alpha) if config.alpha == int(config.alpha) else config.alpha
    given |= AS_BASE.get(kind, {})
    settable = {f.name for f in dataclasses.fields(made)} - {*given, *NOT_SETTABLE}
    for key, value in config.options.items():
        if key not in settable or "dropout" in key:
            message = f"PEFT's {made.__name__} has no field {key} that can be set here."
            raise ConfigError(
                "CONFIG_UNKNOWN_KEY", message, where="adapter.options", fix=f"it has: {', '.join(sorted(settable))}."
            )
        given[key] = value
    return made(**given)


def layers(model: nn.Module) -> dict[str, Any]:
    """PEFT's layers, by the names that the base's own have."""
    if not hasattr(model, "peft_config"):  # PEFT need not be there
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}


def frozen(model: nn.Module) -> dict[str, Tensor]:
    """Frozen tensors of the adapter, each once: random projections, masks, scaling factors."""
    seen: dict[int, tuple[str, Tensor]] = {}
    for name, layer in layers(model).items():
        for own, tensor in (*layer.named_parameters(), *layer.named_buffers()):
            if not own.startswith("base_layer.") and not tensor.requires_grad:
                seen.setdefault(id(tensor), (f"{name}.{own}", tensor))
    return dict(seen.values())


def detach(model: nn.Module) -> None:
    """Put the base's own layers back."""
    for name, layer in layers(model).items():
        replace_module(model, name, layer.get_base_layer())
    del model.peft_config


@contextmanager
def detached(model: nn.Module) -> Iterator[None]:
    """Within, the base's own layers are in their places."""
    own = layers(model)
    try:
        for name, layer in own.items():
            replace_module(model, name, layer.get_base_layer())
        yield
    finally:
        for name, layer in own.items():
            replace_module(model, name, layer)


@contextmanager
def off(model: nn.Module) -> Iterator[None]:
    """Within, each layer computes its base layer. Not by PEFT's ``enable_adapters``, which would also change what is
    trained; `train.selftest.check_base` sees whether it is off."""
    own = layers(model).values()
    before = [layer._disable_adapters for layer in own]
    try:
        for layer in own:
            layer._disable_adapters = True
        yield
    finally:
        for layer, was in zip(own, before, strict=True):
            layer._disable_adapters = was


def merge(model: nn.Module) -> None:
    """Fold the adapter into the base weights."""
    own = layers(model)
    for name, layer in own.items():
        layer.merge(safe_merge=True)
        replace_module(model, name, layer.get_base_layer())
    if own:
        del model.peft_config


def files(model: nn.Module, base: str) -> tuple[dict[str, Tensor], dict[str, object]]:
    """What PEFT itself would write: tensors, and the contents of adapter_config.json."""
    from peft.utils import get_peft_model_state_dict

    every = dict(model.state_dict())
    for common in COMMON:
        first = next((tensor for name, tensor in every.items() if f".{common}.{NAME}" in name), None)
        every |= {} if first is None else {f"base_model.{common}.{NAME}": first}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chosen = get_peft_model_state_dict(model, every, NAME, save_embedding_layers=False)
    named = {k if k.startswith("base_model.") else f"base_model.model.{k}": v for k, v in chosen.items()}
    config = vars(model)["peft_config"][NAME].to_dict() | {"base_model_name_or_path": base, "inference_mode": True}
    written = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    tensors = {k: v.detach().contiguous().cpu().clone() for k, v in named.items()}
    return tensors, json.loads(json.dumps(written))


def load(model: nn.Module, folder: Path) -> None:
    """Attach a saved adapter. Its tensors must be those of its config: PEFT only warns of others. Raises
    ADAPTER_CORRUPT."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    peft = library()
    try:
        tensors, written = load_file(folder / TENSORS), json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        made = peft.PEFT_TYPE_TO_CONFIG_MAPPING[written.pop("peft_type")]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = peft.get_peft_model(model, made(**written), NAME, autocast_adapter_dtype=False)
            peft.set_peft_model_state_dict(wrapped, tensors, NAME)
        why = "its tensors are not those of its config" if set(tensors) != set(files(model, "")[0]) else ""
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    if why:
        message = f"PEFT cannot load it: {why}."
        raise ModelError("ADAPTER_CORRUPT", message, where=str(folder), fix="re-export or re-download it.")
    model.requires_grad_(False).eval()
