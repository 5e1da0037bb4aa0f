"""What the trained model would compute with a mistake that exports and servers are known to make. If a consumer's
answers agree with one of these, the cause is known."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from scipy.optimize import minimize_scalar
from torch import nn

from tunewright.core.config import AdapterConfig
from tunewright.model.adapting.sizes import lora_scaling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROPE_BASES = (10_000.0, 100_000.0, 500_000.0, 1_000_000.0)  # the first is what most programs assume


@dataclass(frozen=True)
class Suspect:
    """``cause``: a key of `diagnosis.FIXES`; ``what``: the mistake in words; ``simulated``: within, the model makes
    it. ``prefix``: tokens before every prompt."""

    cause: str
    what: str
    simulated: Callable[[], AbstractContextManager[None]] = nullcontext
    prefix: tuple[int, ...] = ()


def suspects(module: PreTrainedModel, bos: int | None) -> list[Suspect]:
    """Mistakes besides a wrong factor of the update (`likeliest_factor`). The base model is compared anyway."""
    own = (getattr(module.config.get_text_config(), "rope_parameters", None) or {}).get("rope_theta")
    bases = {base: f"its rope base is {base:,.0f}, and not the model's" for base in ROPE_BASES}
    bases |= {own: "it ignores rope_scaling"} if own else {}
    order = "the rows of q and k {}are not in llama.cpp's order"
    update, weights = r"(lora|start)_B", r"(base\.)?(weight|bias)|(lora|start)_B"
    twice = [Suspect("bos", "it puts a BOS token before the prompt", prefix=(bos,))] if bos is not None else []
    return [
        *(Suspect("rope", what, partial(rope_base, module, base)) for base, what in bases.items()),
        Suspect("order", order.format(""), partial(in_pairs, module, weights)),
        Suspect("order", order.format("in the adapter "), partial(in_pairs, module, update)),
        *twice,
    ]


@contextmanager
def rope_base(module: nn.Module, base: float) -> Iterator[None]:
    """Within, positions are rotated with this base, and without scaling."""
    buffers = [
        (owner, name, buffer)
        for owner in module.modules()
        for name, buffer in owner.named_buffers(recurse=False)
        if name.endswith("inv_freq") and "original" not in name
    ]
    try:
        for owner, name, buffer in buffers:
            setattr(owner, name, base ** -(torch.arange(len(buffer), device=buffer.device) / len(buffer)))
        yield
    finally:
        for owner, name, buffer in buffers:
            setattr(owner, name, buffer)


@contextmanager
def rounded(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within, the model computes in this dtype, as if it had been stored and loaded in it: what files do not contain,
    such as the frequencies of the rotary embedding, remains as it is. The weights are in memory twice."""
    stored = {id(t): t for t in module.state_dict(keep_vars=True).values() if t.is_floating_point()}  # tied: once
    before = [(t, t.data) for t in stored.values()]
    try:
        for t, data in before:
            t.data = data.to(dtype)
        yield
    finally:
        for t, data in before:
            t.data = data


@contextmanager
def in_pairs(module: PreTrainedModel, parts: str) -> Iterator[None]:
    """Within, the rows of q and k are as if a file in transformers' order (the two halves of a head) were read in the
    order that llama.cpp uses for Llama (pairs)."""
    config = module.config.get_text_config()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    pattern = re.compile(rf"\.[qk]_proj\.({parts})$")
    tensors = (*module.named_parameters(), *module.named_buffers())
    before = [(p, p.data) for name, p in tensors if pattern.search(name)]
    try:
        for p, data in before:
            p.data = data.view(-1, head // 2, 2, *data.shape[1:]).transpose(1, 2).reshape(data.shape)
        yield
    finally:
        for p, data in before:
            p.data = data


def likeliest_factor(config: AdapterConfig, loss: Callable[[float], float]) -> tuple[float, str]:
    """(the factor of the update with the least ``loss``, why it may be that)."""
    exported = config.rank if config.init == "zero" else 2 * config.rank
    root, scaling = math.sqrt(exported), lora_scaling(config)
    kinds = {"rslora": {1 / root: "rsLoRA read as LoRA"}, "lora": {root: "LoRA read as rsLoRA"}}
    reasons = dict.fromkeys((1 / 8, 1 / 4, 1 / 2, 2.0, 4.0, 8.0), "") | {
        2.0: "the adapter is applied twice",
        1 / scaling: "alpha is ignored",
        scaling: "alpha/rank is applied twice",
        **kinds.get(config.kind, {}),
    }
    start = min(reasons, key=loss)
    bounds = (start / 1.5, start * 1.5)
    fitted = float(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": start / 1000}).x)
    return (start, reasons[start]) if loss(start) <= loss(fitted) * 1.5 else (fitted, "")
