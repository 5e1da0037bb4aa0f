"""Settings that a training method does not read, or cannot work with."""

from __future__ import annotations

from collections.abc import Callable

from tunewright.core.config.schema import (
    DISTILLED,
    HEADS,
    RATED,
    REFERENCED,
    REWARDED,
    Config,
    DistillConfig,
    MethodOptions,
)
from tunewright.core.errors import ConfigError

Conflict = Callable[[str, str, str], ConfigError]  # of a key, a message and a fix


def check(config: Config, conflict: Conflict) -> None:
    """Raises CONFIG_CONFLICT."""
    method = config.train.method
    for name, readers in MethodOptions.READ_BY.items():
        if method not in readers and getattr(config.train, name) != MethodOptions.model_fields[name].default:
            message = f"train.method={method} does not read train.{name}."
            fix = f"remove it, or choose a method that reads it: {', '.join(readers)}."
            raise conflict(f"train.{name}", message, fix)
    if method in REFERENCED and config.adapter.dropout:
        message = (
            f"train.method={method} uses the initial model as its reference; adapter.dropout would make it differ."
        )
        raise conflict("adapter.dropout", message, "leave it at 0.")
    if method in RATED:
        _check_rated(config, conflict)
    if method in HEADS:
        _check_heads(config, conflict)
    if method in REWARDED and not config.reward.grader:
        fix = "set it to a grader object (docs/guide-rewards.md)."
        raise conflict("reward.grader", f"train.method={method} needs reward.grader.", fix)
    if method not in REWARDED and (given := [k for k, v in config.reward.model_dump().items() if v]):
        fix = "remove it, or set train.method=grpo."
        raise conflict(f"reward.{given[0]}", f"train.method={method} does not read reward.{given[0]}.", fix)
    if method in REWARDED:
        _check_rewarded(config, conflict)
    _check_distilled(config, conflict)
    if method != "sft" and config.sweep.grid:
        message = f"a sweep compares recipes by the likelihood of answers; train.method={method} needs another measure."
        raise conflict("sweep.grid", message, "train once for each recipe, with train.method=... and --name.")


def _check_distilled(config: Config, conflict: Conflict) -> None:
    """A teacher where one is learned from, and nowhere else."""
    method, given = config.train.method, config.distill
    changed = [name for name in DistillConfig.model_fields if getattr(given, name) != getattr(DistillConfig(), name)]
    if method not in DISTILLED and changed:
        fix = "remove it, or set train.method=distill."
        raise conflict(f"distill.{changed[0]}", f"train.method={method} does not read distill.{changed[0]}.", fix)
    if method in DISTILLED and not given.teacher:
        fix = "name the model to learn from: distill.teacher=FOLDER."
        raise conflict("distill.teacher", f"train.method={method} needs distill.teacher.", fix)
    if method in DISTILLED and config.train.fsdp:
        message = f"train.method={method} does not support train.fsdp."
        raise conflict("train.fsdp", message, "leave it at false.")
    if "beta" in changed and given.divergence != "jsd":
        message = f"distill.divergence={given.divergence} does not read distill.beta."
        raise conflict("distill.beta", message, "remove it, or set distill.divergence=jsd.")


def _check_rated(config: Config, conflict: Conflict) -> None:
    """Their reference is the model without its adapter."""
    method = config.train.method
    if config.adapter.kind == "none":
        message = f"train.method={method} compares with the initial model in every step: the model without its adapter."
        raise conflict("adapter.kind", message, "choose lora, rslora or dora.")
    if config.adapter.start is not None:
        message = f"train.method={method} compares with the model without its adapter, not with adapter.start."
        raise conflict("adapter.start", message, "merge that adapter into the model, and train on the merged model.")


def _check_heads(config: Config, conflict: Conflict) -> None:
    """They answer with a head, and do not write."""
    method = config.train.method
    for name, value in (("labels", "merge"), ("unseen_labels", "drop")):
        if method != "classify" and getattr(config.data, name) == value:
            message = f"data.{name}={value} is for rows with one label each, and not for train.method={method}."
            raise conflict(f"data.{name}", message, "remove it.")
    if method == "regress" and config.data.label_names:
        message = "data.label_names names labels; train.method=regress learns numbers."
        raise conflict("data.label_names", message, "remove it, or use train.method=classify.")
    if config.adapter.of_peft or config.adapter.start is not None:
        what = f"adapter.kind={config.adapter.kind}" if config.adapter.of_peft else "adapter.start"
        fix = "choose lora, rslora or dora." if config.adapter.of_peft else "remove it."
        raise conflict(what.partition("=")[0], f"{what} is not supported with the head of train.method={method}.", fix)
    for name in ("regression_rows", "apply_best_scale"):
        if getattr(config.forget, name):
            message = f"forget.{name} needs a model that writes; that of train.method={method} does not."
            raise conflict(f"forget.{name}", message, "leave it out.")


def _check_rewarded(config: Config, conflict: Conflict) -> None:
    """Raises CONFIG_CONFLICT for what rows without answers, or branches that sample, cannot do yet."""
    method = config.train.method
    if config.adapter.dropout:
        message = (
            "samples are drawn without dropout, so adapter.dropout would train another model than the one sampled."
        )
        raise conflict("adapter.dropout", message, "leave it at 0.")
    if config.forget.regression_rows:
        message = f"train.method={method} reads rows without answers, and regression rows have answers."
        raise conflict("forget.regression_rows", message, "leave it out.")
    for name in type(config.experiments).model_fields:
        if getattr(config.experiments, name):
            message = f"experiments.{name} needs another training run, which train.method={method} does not support."
            raise conflict(f"experiments.{name}", message, "leave it out.")
    if config.prove.evidence == "full":
        message = f"prove.evidence=full needs another training run, which train.method={method} does not support."
        raise conflict("prove.evidence", message, "use standard or plain.")
