"""LoRA (Hu et al. 2021, 2106.09685), rsLoRA (2312.03732) and DoRA (2402.09353) over any linear layer.

Base weights are frozen in the compute dtype; A, B and DoRA's magnitudes are float32 and alone are trained. With the
adapter off, a layer is the base layer, bit for bit. Axes: I inputs, O outputs, R rank.
"""

from __future__ import annotations

import fnmatch
import functools
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunewright.core.config import AdapterConfig
from tunewright.core.errors import ModelError
from tunewright.model.adapting import initial, peft_kinds, stored
from tunewright.model.adapting.sizes import lora_scaling, of_layer
from tunewright.model.frozen.packed import Linear, PackedLinear, device_of, product, replace_module
from tunewright.model.heads.linear import attach_head, head_of


class LoRALinear(nn.Module):
    """A frozen linear layer plus a low-rank update: y = base(x) + scaling * B(A(x)), where ``scaling`` is the LoRA
    scaling factor; with magnitudes (DoRA), each output row of the updated weight is set to length ``magnitude``.

    With ``start_A`` and ``start_B`` (PiSSA, OLoRA), their product is subtracted from the update, which is then zero at
    the start. Others subtract it from the base, which then is another model.
    """

    start_A: Tensor | None
    start_B: Tensor | None

    def __init__(self, base: Linear, config: AdapterConfig) -> None:
        super().__init__()
        self.base = base
        self.scaling = lora_scaling(config)
        self.dropout = config.dropout
        self.on = True
        dtype = base.weight.dtype if isinstance(base, nn.Linear) else torch.float32
        kept = torch.promote_types(dtype, torch.float32)
        empty = functools.partial(torch.zeros, device=device_of(base), dtype=kept)
        shapes = (config.rank, base.in_features), (base.out_features, config.rank)
        self.lora_A, self.lora_B = (nn.Parameter(empty(shape)) for shape in shapes)
        for name, shape in zip(("start_A", "start_B"), shapes, strict=True):
            self.register_buffer(name, None if config.init == "zero" else empty(shape))
        self.magnitude = nn.Parameter(self.row_norm(self.base_weight())) if config.kind == "dora" else None
        self.train(base.training)  # a new module is in training mode: dropout would be active in evaluation

    @property
    def width(self) -> int:
        """The smaller one of its numbers of inputs and outputs."""
        return min(self.base.in_features, self.base.out_features)

    @torch.no_grad()
    def begin(self, a_RI: Tensor, b_OR: Tensor) -> None:
        """Set A and B to their initial values."""
        self.lora_A.copy_(a_RI)
        self.lora_B.copy_(b_OR)
        if self.start_A is not None and self.start_B is not None:
            self.start_A.copy_(a_RI)
            self.start_B.copy_(b_OR)
        if self.magnitude is not None:
            self.magnitude.copy_(self.row_norm(self.base_weight()))

    def factors(self) -> tuple[Tensor, Tensor]:
        """(a_RI, b_OR), whose product is the update before scaling; of twice the rank if one is subtracted."""
        a, b = self.lora_A, self.lora_B
        if self.start_A is None or self.start_B is None:
            return a, b
        # BA - B0A0 = B(A - A0) + (B - B0)A0: small differences are kept when they are rounded to the compute dtype.
        return torch.cat((a - self.start_A, self.start_A)), torch.cat((b, b - self.start_B), 1)

    def named(self) -> dict[str, Tensor]:
        """Factors and magnitude by the ends of their names in PEFT's files."""
        a_RI, b_OR = self.factors()
        plain = {".lora_A.weight": a_RI, ".lora_B.weight": b_OR}
        return plain if self.magnitude is None else plain | {".lora_magnitude_vector": self.magnitude}

    def forward(self, x: Tensor) -> Tensor:
        if not self.on:
            return torch.as_tensor(self.base(x))  # a bias that is added later is rounded once more
        base, (a_RI, b_OR) = product(x, self.base), self.factors()
        dropped = F.dropout(x, self.dropout, self.training) if self.dropout else x
        # The factor multiplies the R numbers of a token in the middle, and B is added as it is multiplied: no pass over
        # the output.
        small = F.linear(dropped, a_RI.to(x.dtype)) * self.scaling
        y = torch.addmm(base.flatten(0, -2), small.flatten(0, -2), b_OR.T.to(x.dtype)).view(base.shape)
        if self.magnitude is not None:
            # The norm is a constant to autograd (DoRA section 4.3).
            norm = self.row_norm(self.merged_weight_before_norm().detach())
            y = y * (self.magnitude / norm).to(x.dtype)
        return y if self.base.bias is None else y + self.base.bias

    def base_weight(self) -> Tensor:
        """W in the adapter's dtype (float32 or float64): the numbers that the model computes with."""
        base = self.base
        return (base.weight_in(base.dtype) if isinstance(base, PackedLinear) else base.weight).to(self.lora_A.dtype)

    def merged_weight_before_norm(self) -> Tensor:
        """W + scaling * BA in the adapter's dtype."""
        a_RI, b_OR = self.factors()
        return self.base_weight() + self.scaling * (b_OR @ a_RI)

    def merged_weight(self) -> Tensor:
        merged = self.merged_weight_before_norm()
        return merged if self.magnitude is None else merged * (self.magnitude / self.row_norm(merged))[:, None]

    @staticmethod
    def row_norm(weight_OI: Tensor) -> Tensor:
        return weight_OI.square().sum(1).sqrt()


@dataclass(frozen=True)
class AdapterSummary:
    """What `attach` did: the names of the adapted layers, and how many of all numbers are trained."""

    layers: tuple[str, ...]
    trained: int
    total: int


def targets(model: Any, patterns: list[str]) -> list[str]:
    """Names of the linear layers that match a pattern. A pattern matches a whole name or its end; `all-linear` leaves
    out the head."""
    head = model.get_output_embeddings()
    linear = [name for name, layer in model.named_modules() if isinstance(layer, Linear) and layer is not head]
    chosen = [
        n
        for n in linear
        if any(p == "all-linear" or fnmatch.fnmatchcase(n, p) or fnmatch.fnmatchcase(n, f"*.{p}") for p in patterns)
    ]
    if not chosen:
        kinds = sorted({n.rsplit(".", 1)[-1] for n in linear})
        raise ModelError(
            "LORA_NO_TARGET",
            f"adapter.targets {patterns} match no linear layer.",
            where="adapter.targets",
            fix=f"layers end in: {', '.join(kinds)}.",
        )
    return chosen


def attach(model: Any, config: AdapterConfig, seed: int | None = None, outputs: int = 0) -> AdapterSummary:
    """Put the adapter on (or, for kind none, make all weights float32 and trainable), and a head of so many
    ``outputs``, if any, with the initial values of `initialise`; without a ``seed``, its values are still to be loaded.
    Raises LORA_NO_TARGET."""
    packed = sum(math.prod(m.shape) for m in model.modules() if isinstance(m, PackedLinear))
    total = packed + sum(p.numel() for p in model.parameters())
    if config.kind == "none":
        assert not packed, "packed weights are not trained"
        # The sum of many small updates is lost in bfloat16 (Zamirai et al. 2020), so trained weights are float32.
        if next(model.parameters()).dtype != torch.float64:
            model.float()
        model.requires_grad_(True)
        if outputs:
            attach_head(model, outputs)
        return AdapterSummary((), total, total)
    model.requires_grad_(False)
    names = targets(model, config.targets)
    if config.of_peft:
        peft_kinds.attach(model, config, names, seed or 0)
    else:
        _attach_lora(model, config, names)
        if seed is not None:
            initialise(model, config, seed)
    if outputs:
        attach_head(model, outputs)
    trained = sum(p.numel() for p in trainable(model).values())
    return AdapterSummary(tuple(names), trained, total + trained)


def _attach_lora(model: nn.Module, config: AdapterConfig, names: list[str]) -> None:
    for where, pattern in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        for key in pattern:
            if not any(re.match(rf"(.*\.)?({key})$", name) for name in names):
                message, fix = f"{key!r} matches no adapted layer.", f"layers are called like {names[0]}."
                raise ModelError("LORA_NO_TARGET", message, where=f"adapter.{where}", fix=fix)
    for name in names:
        replace_module(model, name, LoRALinear(cast(Linear, model.get_submodule(name)), of_layer(config, name)))


def initialise(model: nn.Module, config: AdapterConfig, seed: int) -> None:
    """Give an attached adapter its initial values, which depend on the base, the adapter in ``config.start`` and
    ``seed``, and a head zeros. Nothing else is done for kind none. Raises LORA_NO_TARGET, ADAPTER_BASE_MISMATCH."""
    if (head := head_of(model)) is not None:
        with torch.no_grad():
            head.weight.zero_()
    if config.of_peft:
        names = list(peft_kinds.layers(model))
        peft_kinds.detach(model)
        peft_kinds.attach(model, config, names, seed)
        return
    if config.start is not None:
        _continue(model, Path(config.start))
        return
    generator = torch.Generator().manual_seed(seed)
    layers = list(adapted(model).values())
    for layer in sorted(layers, key=lambda layer: layer.width):
        if len(layer.lora_A) > layer.width:
            raise ModelError(
                "LORA_NO_TARGET",
                f"adapter.rank {len(layer.lora_A)} is larger than the smallest adapted layer ({layer.width}).",
                where="adapter.rank",
                fix=f"use at most {layer.width}.",
            )
    for layer in layers:
        rank = len(layer.lora_A)
        if config.init == "zero":
            layer.begin(initial.uniform(layer.base.in_features, rank, generator), torch.zeros(()))
        else:
            layer.begin(*initial.factors(layer.base_weight(), rank, layer.scaling, config.init, generator))


@torch.no_grad()
def _continue(model: nn.Module, folder: Path) -> None:
    given = stored.read(folder).tensors
    own = {f"{stored.PREFIX}{n}{end}": t for n, layer in adapted(model).items() for end, t in layer.named().items()}
    if {k: t.shape for k, t in own.items()} != {k: t.shape for k, t in given.items()}:
        raise stored.other_base(folder, "the adapter's layers, or their shapes, are not those of this base")
    for name, tensor in own.items():
        tensor.copy_(given[name])


def adapted(model: nn.Module) -> dict[str, LoRALinear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def of_peft(model: nn.Module) -> bool:
    """Whether its adapter is one that PEFT computes."""
    return bool(peft_kinds.layers(model))


def update_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All that the update of the base is made of: the trained tensors, and frozen ones that belong to the adapter."""
    starts = {
        f"{name}.{end}": tensor
        for name, layer in adapted(model).items()
        for end, tensor in (("start_A", layer.start_A), ("start_B", layer.start_B))
        if tensor is not None
    }
    return {**trainable(model), **starts, **peft_kinds.frozen(model)}


@contextmanager
def off(model: nn.Module) -> Iterator[None]:
    """Within, the model is the base model, bit for bit."""
    layers = list(adapted(model).values())
    before = [layer.on for layer in layers]
    try:
        for layer in layers:
            layer.on = False
        with peft_kinds.off(model):
            yield
    finally:
        for layer, on in zip(layers, before, strict=True):
            layer.on = on


@contextmanager
def detached(model: nn.Module) -> Iterator[None]:
    """Within, the base's own layers are back in their places, as before `attach`."""
    layers = adapted(model)
    try:
        for name, layer in layers.items():
            replace_module(model, name, layer.base)
        with peft_kinds.detached(model):
            yield
    finally:
        for name, layer in layers.items():
            replace_module(model, name, layer)


@contextmanager
def scaled(model: nn.Module, scale: float) -> Iterator[None]:
    """Within, the adapter's update is multiplied by ``scale`` too, not only by the LoRA scaling factor; at 0 the model
    is the base model, bit for bit."""
    if scale == 0:
        with off(model):
            yield
        return
    assert scale == 1 or not of_peft(model), "not every adapter of PEFT is a sum"
    layers = list(adapted(model).values())
    before = [layer.scaling for layer in layers]
    try:
        for layer in layers:
            layer.scaling *= scale
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling = scaling


@torch.no_grad()
def scale_in_place(model: nn.Module, scale: float) -> None:
    """Multiply the adapter's update by ``scale``, permanently."""
    assert scale == 1 or not of_peft(model), "not every adapter of PEFT is a sum"
    for layer in adapted(model).values():
        layer.lora_B.mul_(scale)
        if layer.start_B is not None:
            layer.start_B.mul_(scale)


def merge(model: nn.Module) -> None:
    """Fold the adapter into the base weights, in float32 before casting back to the weight's own dtype. Packed weights
    are dense afterwards: packed again, they would lose the update."""
    dtype = next(model.parameters()).dtype
    for name, layer in adapted(model).items():
        with torch.no_grad():
            base = _dense(layer.base, dtype)
            base.weight.copy_(layer.merged_weight())
        replace_module(model, name, base)
    peft_kinds.merge(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, PackedLinear):
            replace_module(model, name, _dense(module, dtype))


@torch.no_grad()
def _dense(layer: Linear, dtype: torch.dtype) -> nn.Linear:
    if not isinstance(layer, PackedLinear):
        return layer
    dense = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, layer.device, dtype)
    dense.weight.copy_(layer.weight_in(dtype))
    if layer.bias is not None:
        dense.bias.copy_(layer.bias)
    return dense.requires_grad_(False).train(layer.training)
