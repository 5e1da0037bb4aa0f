"""Which kernels a plan has: what computes the layers. It decides how much memory a token takes, so it must be known
before the sizes of passes are, and not only when the self-test sees the adapted layers."""

from __future__ import annotations

from tunewright.core.config import Kernels
from tunewright.core.errors import ConfigError
from tunewright.model.attention import flex
from tunewright.tokens.packing import Layout
from tunewright.train.recipe import CONFIGURED, Choice, PlanInputs

COMPILED_FROM = 200  # steps: compiling FlexAttention takes up to half a minute of the first (an estimate)


def choose_kernels(given: PlanInputs, layout: Layout, steps: int) -> Choice[Kernels]:
    """Raises CONFIG_CONFLICT for kernels that cannot compute the layers."""
    facts, adapter, asked = given.facts, given.config.adapter, given.config.train.kernels
    plain = adapter.kind in ("lora", "rslora") and not adapter.dropout
    if adapter.of_peft:
        unsupported = f"tunewright's fused kernels do not support {adapter.kind}, which PEFT computes"
    elif not facts.fused:
        unsupported = "tunewright's fused kernels do not support this model's layers"
    else:
        unsupported = "tunewright's fused kernels are for plain LoRA, without dropout"
    against: dict[Kernels, str] = {}
    if not facts.fused or not plain:
        against = dict.fromkeys(("fused", "flex", "compiled"), unsupported)
    elif not flex.supports(facts.head_width, given.machine.device):
        no_flex = "FlexAttention needs a GPU and heads whose width is a power of two, 16 or more"
        against = dict.fromkeys(("flex", "compiled"), no_flex)
    elif layout == "padded":
        no_flex = "FlexAttention is for rows that are not padded"
        against = dict.fromkeys(("flex", "compiled"), no_flex)
    elif facts.packed or given.config.train.fsdp:
        against = {"compiled": "a compiled layer would keep dense weights for its backward pass"}
    if not flex.compiles_layers():
        against.setdefault("compiled", "torch before 2.13 loses gradients of a compiled layer")
    if asked != "auto":
        if reason := against.get(asked):
            fix, what = "leave it at auto.", f"train.kernels={asked}, but {reason}."
            raise ConfigError("CONFIG_CONFLICT", what, where="train.kernels", fix=fix)
        return Choice(asked, CONFIGURED)
    if "fused" in against:
        return Choice("transformers", unsupported)
    if "flex" not in against and steps >= COMPILED_FROM:
        return Choice("flex", f"on a GPU, {steps} steps win back the time that compiling FlexAttention takes")
    equal = "tunewright's fused kernels support this model's layers and gave equal results in the probe"
    short = f"; {steps} steps would not win back the time that compiling FlexAttention takes"
    return Choice("fused", equal + ("" if "flex" in against else short))
