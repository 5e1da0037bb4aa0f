"""Adapters that PEFT computes: which are offered, what they read, and why others are not."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic_core import PydanticCustomError

from tunewright.core.errors import ConfigError

if TYPE_CHECKING:
    from tunewright.core.config.schema import Config

PeftKind = Literal[
    "peft:c3a",
    "peft:delora",
    "peft:fourierft",
    "peft:gralora",
    "peft:hira",
    "peft:hra",
    "peft:ia3",
    "peft:loha",
    "peft:lokr",
    "peft:miss",
    "peft:oft",
    "peft:randlora",
    "peft:road",
    "peft:vera",
    "peft:waveft",
]
# Adapters of PEFT that are not in `PeftKind`, each with the reason.
REFUSED_KINDS = {
    "peft:lora": "it is what lora, rslora and dora are, which tunewright computes itself",
    "peft:adalora": "its ranks change by a schedule of its own during training, which a resumed run could not repeat",
    **dict.fromkeys(
        ("peft:prompt_tuning", "peft:p_tuning", "peft:prefix_tuning", "peft:cpt", "peft:multitask_prompt_tuning"),
        "it adds tokens or keys to the prompt: positions change, and nothing can be merged or served alone",
    ),
    "peft:adaption_prompt": "it replaces whole attention layers, which cannot be computed for several rows at once",
    "peft:boft": "PEFT compiles it when it is used, and changes its settings where that fails",
    "peft:lily": "PEFT cannot merge it",
    "peft:tinylora": "saved and loaded again by PEFT, it computes something else (peft 0.21)",
    "peft:xlora": "it mixes adapters that have been trained before, and trains no update",
    "peft:poly": "it needs the number of the task of each row",
    "peft:ln_tuning": "it trains the norms' own weights, so that no layer could be switched off",
    "peft:trainable_tokens": "it trains rows of the embedding, which is no update of a linear layer",
}
# Of adapters of PEFT that do not have both rank and alpha.
PEFT_SIZES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("peft:c3a", "peft:fourierft", "peft:ia3", "peft:oft", "peft:road", "peft:waveft"), ()),
    **dict.fromkeys(("peft:delora", "peft:hira", "peft:hra", "peft:miss", "peft:vera"), ("rank",)),
}


def offered(kind: object) -> object:
    """The kind; raises with the reason if it is one that is refused."""
    if isinstance(kind, str) and (reason := REFUSED_KINDS.get(kind)):
        raise PydanticCustomError("refused", f"{kind} is not offered: {reason}.")
    return kind


def compiles(pattern: str) -> str:
    """The pattern, if it is a regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return pattern


def check(config: Config, given: set[str], conflict: Callable[[str, str, str], ConfigError]) -> None:
    """Raises CONFIG_CONFLICT for settings that this kind of adapter does not read, or cannot have."""
    adapter, key = config.adapter, next(iter(sorted({*config.adapter.unread} & given)), None)
    if key is not None and adapter.start is not None and not adapter.of_peft:
        message = f"adapter.{key} is taken from the adapter in adapter.start."
        raise conflict(f"adapter.{key}", message, "remove it.")
    if key is not None:
        message = f"adapter.kind={adapter.kind} does not read adapter.{key}."
        raise conflict(f"adapter.{key}", message, "remove it, or choose another kind of adapter.")
    if not adapter.of_peft:
        return
    if config.quantise != "none":
        message = f"quantise={config.quantise}: {adapter.kind} is computed by PEFT, which needs dense weights."
        raise conflict("quantise", message, "choose lora, rslora or dora, or quantise=none.")
    if config.forget.apply_best_scale or config.forget.scales != type(config.forget)().scales:
        message = f"forget.scales and forget.apply_best_scale need an added update; that of {adapter.kind} may not be."
        raise conflict("forget.scales", message, "remove forget.scales and forget.apply_best_scale.")
    if config.train.dtype == "bfloat16" or config.train.fsdp:
        what = "train.fsdp" if config.train.fsdp else "train.dtype=bfloat16"
        message = f"{what} is not supported with {adapter.kind}: PEFT's layers are computed in float32, in one piece."
        raise conflict(what.partition("=")[0], message, "remove it.")
