"""Settings in words: what each accepts, and a validation error as one line with the setting that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Literal, get_args

from pydantic import BaseModel, ValidationError

from tunewright.core.config.schema import Config
from tunewright.core.errors import ConfigError


def fields(model: type[BaseModel] = Config, prefix: str = "") -> list[tuple[str, str, str, str]]:
    """(dotted key, type, default, meaning) of every setting, in the order of declaration."""
    rows: list[tuple[str, str, str, str]] = []
    for name, info in model.model_fields.items():
        key = f"{prefix}{name}"
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            rows += fields(info.annotation, f"{key}.")
        else:
            rows.append((key, _allowed(info), str(info.default), info.description or ""))
    return rows


def _allowed(info: Any) -> str:
    """A field's type and range in words, e.g. ``auto or number > 0, <= 1``."""

    def words(kind: Any, extra: list[Any]) -> str:
        args = get_args(kind)
        if getattr(kind, "__metadata__", None):
            limits = [m for field in kind.__metadata__ for m in getattr(field, "metadata", [field])]
            return words(args[0], limits)
        origin = getattr(kind, "__origin__", None)
        if origin is Literal:
            return " | ".join(str(a) for a in args)
        if args and origin not in (dict, list):
            return " or ".join(words(a, []) for a in args)
        plain = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "nothing"}
        if origin is list:
            return f"list of: {words(args[0], [])}"
        name = plain.get(kind) or ("mapping" if origin is dict else str(kind))
        signs = {"Ge": ">=", "Gt": ">", "Le": "<=", "Lt": "<"}
        bounds = [f"{sign} {getattr(m, name.lower())}" for m in extra for name, sign in signs.items() if type(m).__name__ == name]
        return " ".join([name, ", ".join(bounds)]).strip()

    return words(info.annotation, list(info.metadata))


# What other trainers call our settings.
ELSEWHERE = {
    "learning_rate": "train.lr", "num_epochs": "train.epochs", "num_train_epochs": "train.epochs", "max_steps": "train.steps",
    "per_device_train_batch_size": "train.batch_size", "micro_batch_size": "train.tokens_per_pass",
    "gradient_accumulation_steps": "train.batch_size", "batch": "train.batch_size", "capacity": "train.tokens_per_pass", "clip": "train.max_grad_norm",
    "recompute": "train.gradient_checkpointing", "shots": "prove.few_shot", "wordings": "prove.prompts", "form": "data.format",
    "max_seq_length": "train.max_length", "sequence_len": "train.max_length", "cutoff_len": "train.max_length",
    "lr_scheduler": "train.schedule", "lr_scheduler_type": "train.schedule", "warmup_ratio": "train.warmup", "warmup_steps": "train.warmup",
    "packing": "train.layout", "sample_packing": "train.layout", "bf16": "train.dtype", "fp16": "train.dtype",
    "lora_r": "adapter.rank", "r": "adapter.rank", "lora_alpha": "adapter.alpha", "lora_dropout": "adapter.dropout",
    "lora_target": "adapter.targets", "target_modules": "adapter.targets", "lora_target_modules": "adapter.targets",
    "model_name_or_path": "model", "base_model": "model", "dataset": "data.train", "datasets": "data.train",
    "system_prompt": "data.instruction", "val_set_size": "split.dev", "output_dir": "--runs",
}  # fmt: skip


def _instead(key: str, known: Iterable[str], sections: set[str]) -> str:
    """The setting that an unknown key probably means, by its name elsewhere, its spelling or its last part; else what there is."""
    within, _, last = key.rpartition(".")
    if near := difflib.get_close_matches(last, ELSEWHERE, n=1, cutoff=0.85):
        return f"did you mean {ELSEWHERE[near[0]]}?"
    start = f"{within}." if within in sections else ""
    inside = {k.removeprefix(start): k for k in (*known, *sections) if k.startswith(start)}
    for among in (inside, {k.rsplit(".", 1)[-1]: k for k in known}):
        if near := difflib.get_close_matches(last, among, n=1, cutoff=0.7):
            return f"did you mean {among[near[0]]}?"
    there = sorted({k.removeprefix(start).split(".")[0] for k in known if k.startswith(start)})
    return f"{within if start else 'a config'} has: {', '.join(there)}."


def explain(error: ValidationError, places: dict[str, str]) -> ConfigError:
    """One line for the first mistake; unknown keys before wrong values, because they often cause them."""
    known = {key: (kind, meaning) for key, kind, _, meaning in fields()}
    sections = {key.rsplit(".", 1)[0] for key in known if "." in key}
    found = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first = found[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        fix = _instead(key, known, sections)
        return ConfigError("CONFIG_UNKNOWN_KEY", f"there is no setting `{key}`.", where=places.get(key, key), fix=fix)
    while key and key not in known and key not in sections and "." in key:
        key = key.rsplit(".", 1)[0]
    value = first.get("input")
    if key in sections:
        return ConfigError(
            "CONFIG_RANGE",
            f"{key} is a section with keys of its own, not {value!r}.",
            where=places.get(key, key),
            fix=f"`{next(k for k in known if k.startswith(key + '.'))}` is one of them.",
        )
    kind, _ = known[key]
    fix = f"write it in quotes: '{key}=\"...\"'." if kind.startswith("text") else f"set {key} within that range."
    return ConfigError("CONFIG_RANGE", f"{key} is {value!r}; allowed: {kind}.", where=places.get(key, key), fix=fix)
