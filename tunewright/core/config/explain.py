"""Explains settings: the values each one allows, and validation errors as one line with a suggested fix."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any, Literal, get_args

from pydantic import BaseModel, ValidationError

from tunewright.core.config.schema import Config, NamedIn
from tunewright.core.errors import ConfigError


def fields(model: type[BaseModel] = Config, prefix: str = "") -> list[tuple[str, str, str, str]]:
    """(dotted key, allowed values, default, description) of every setting, in declaration order."""
    rows: list[tuple[str, str, str, str]] = []
    for name, info in model.model_fields.items():
        key = f"{prefix}{name}"
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            rows += fields(info.annotation, f"{key}.")
        else:
            rows.append((key, _allowed(info), str(info.default), info.description or ""))
    return rows


def _allowed(info: Any) -> str:
    """A field's type and range in words, for example ``auto or number > 0, <= 1``."""

    def describe(kind: Any, constraints: list[Any]) -> str:
        args = get_args(kind)
        if listed := next((m for m in constraints if isinstance(m, NamedIn)), None):
            return " | ".join(listed.allowed())
        if getattr(kind, "__metadata__", None):
            limits = [m for field in kind.__metadata__ for m in getattr(field, "metadata", [field])]
            return describe(args[0], limits)
        origin = getattr(kind, "__origin__", None)
        if origin is Literal:
            return " | ".join(str(a) for a in args)
        if args and origin not in (dict, list):
            return " or ".join(describe(a, []) for a in args)
        plain = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null"}
        if origin is list:
            return f"list of: {describe(args[0], [])}"
        name = plain.get(kind) or ("mapping" if origin is dict else str(kind))
        signs = {"Ge": ">=", "Gt": ">", "Le": "<=", "Lt": "<"}
        bounds = [
            f"{sign} {getattr(m, name.lower())}"
            for m in constraints
            for name, sign in signs.items()
            if type(m).__name__ == name
        ]
        return " ".join([name, ", ".join(bounds)]).strip()

    return describe(info.annotation, list(info.metadata))


# Settings that had another name in 0.1.0.
RENAMED = {
    "data.form": "data.format",
    "train.batch": "train.batch_size",
    "train.capacity": "train.tokens_per_pass",
    "train.clip": "train.max_grad_norm",
    "train.recompute": "train.gradient_checkpointing",
    "prove.shots": "prove.few_shot",
    "prove.wordings": "prove.prompts",
    "prove.max_rows": "prove.max_test_rows",
    "prove.dev_rows": "prove.max_dev_rows",
    "prove.batch": "prove.batch_size",
    "prove.alpha": "prove.significance",
    "prove.handover": "prove.target_accuracy",
    "prove.internalise": "experiments.prompt_distillation",
    "prove.crossfit": "experiments.crossfit",
    "prove.cleaning": "experiments.cleaning",
    "prove.remote.key": "prove.remote.api_key_env",
    "prove.remote.together": "prove.remote.concurrency",
    "forget.keep": "forget.regression_rows",
    "forget.mitigate": "experiments.mitigation",
    "forget.choose": "forget.apply_best_scale",
    "export.merged": "export.to",
    "cost.together": "cost.batch_size",
    "cost.per_hour": "cost.price_per_hour",
}

# The names of settings in other trainers.
SYNONYMS = {
    "learning_rate": "train.lr",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "max_steps": "train.steps",
    "batch": "train.batch_size",
    "per_device_train_batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.batch_size",
    "micro_batch_size": "train.tokens_per_pass",
    "max_seq_length": "train.max_length",
    "sequence_len": "train.max_length",
    "cutoff_len": "train.max_length",
    "lr_scheduler": "train.schedule",
    "lr_scheduler_type": "train.schedule",
    "warmup_ratio": "train.warmup",
    "warmup_steps": "train.warmup",
    "clip_grad_norm": "train.max_grad_norm",
    "packing": "train.layout",
    "sample_packing": "train.layout",
    "bf16": "train.dtype",
    "fp16": "train.dtype",
    "lora_r": "adapter.rank",
    "r": "adapter.rank",
    "kl_coef": "train.kl_weight",
    "kl_penalty_coef": "train.kl_weight",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "lora_target": "adapter.targets",
    "target_modules": "adapter.targets",
    "lora_target_modules": "adapter.targets",
    "model_name_or_path": "model",
    "base_model": "model",
    "dataset": "data.train",
    "datasets": "data.train",
    "system_prompt": "data.instruction",
    "schema": "data.answer_schema",
    "json_schema": "data.answer_schema",
    "order": "prove.list_order",
    "tolerance": "prove.number_tolerance",
    "val_set_size": "split.dev",
    "output_dir": "--runs",
}


def _suggestion(key: str, known: Iterable[str], sections: set[str]) -> str:
    """The setting that an unknown key probably means (old name, synonym, similar spelling), else the valid keys."""
    if key in RENAMED:
        return f"it is now called {RENAMED[key]}."
    within, _, last = key.rpartition(".")
    if near := difflib.get_close_matches(last, SYNONYMS, n=1, cutoff=0.85):
        return f"did you mean {SYNONYMS[near[0]]}?"
    start = f"{within}." if within in sections else ""
    inside = {k.removeprefix(start): k for k in (*known, *sections) if k.startswith(start)}
    for candidates in (inside, {k.rsplit(".", 1)[-1]: k for k in known}):
        if near := difflib.get_close_matches(last, candidates, n=1, cutoff=0.7):
            return f"did you mean {candidates[near[0]]}?"
    valid = sorted({k.removeprefix(start).split(".")[0] for k in known if k.startswith(start)})
    return f"valid keys{f' in {within}' if start else ''}: {', '.join(valid)}."


def explain(error: ValidationError, places: dict[str, str]) -> ConfigError:
    """The first mistake as a ConfigError; unknown keys come first, because they often cause the others."""
    known = {key: (kind, meaning) for key, kind, _, meaning in fields()}
    sections = {key.rsplit(".", 1)[0] for key in known if "." in key}
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        fix = _suggestion(key, known, sections)
        return ConfigError("CONFIG_UNKNOWN_KEY", f"there is no setting `{key}`.", where=places.get(key, key), fix=fix)
    while key and key not in known and key not in sections and "." in key:
        key = key.rsplit(".", 1)[0]
    value = first.get("input")
    if key in sections:
        return ConfigError(
            "CONFIG_RANGE",
            f"{key} is a section, so it cannot be set to {value!r}.",
            where=places.get(key, key),
            fix=f"set its keys, e.g. `{next(k for k in known if k.startswith(key + '.'))}`.",
        )
    kind, _ = known[key]
    if first["type"] == "refused":
        message = str(first["msg"])
        return ConfigError("CONFIG_RANGE", message, where=places.get(key, key), fix=f"choose one of: {kind}.")
    fix = _range_fix(key, kind, value)
    return ConfigError("CONFIG_RANGE", f"{key} is {value!r}; allowed: {kind}.", where=places.get(key, key), fix=fix)


def _range_fix(key: str, kind: str, value: object) -> str:
    """What to do about a value that is not of the ``kind`` that its setting allows."""
    if kind.startswith("text"):
        return f"put it in quotes: '{key}=\"...\"'."
    if isinstance(value, str) and any(word in kind for word in ("number", "integer")):
        try:
            finite = math.isfinite(float(value))
        except ValueError:
            finite = False
        if finite:
            return "write the number without quotes."
    default = next(default for name, _, default, _ in fields() if name == key)
    return f"choose an allowed value, or leave it out (default: {default})."
