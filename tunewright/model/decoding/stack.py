"""Adapters of one base, stacked, so that each row of a step may use another one.

The factors of all adapters lie under one another: a product with all of them, times a factor for each row and rank,
times all of them again. (Punica, Chen et al. 2023, 2310.18547, and S-LoRA, Sheng et al. 2023, 2311.03285, have a kernel
for it; here it is two dense products.) Axes: B rows, I inputs, O outputs, R ranks of all adapters, r of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tunewright.core.config import AdapterConfig
from tunewright.model.adapting.sizes import as_plain, lora_scaling
from tunewright.model.decoding import layer as plain
from tunewright.model.decoding.layer import Function
from tunewright.model.frozen.packed import PackedLinear

A, B = "lora_A", "lora_B"


@dataclass(frozen=True)
class Use:
    """Which adapter a row uses, and at which scale; ``adapter`` None: the base."""

    adapter: str | None = None
    scale: float = 1.0


BASE = Use()


@dataclass(frozen=True)
class _Place:
    start: int
    rank: int
    scaling: float

    @property
    def end(self) -> int:
        return self.start + self.rank


@dataclass(frozen=True)
class _Selected:
    """``ranks``: those that any row uses; ``factor``: of every row, or (B, R) of each row and rank."""

    ranks: slice
    factor: float | Tensor


def supports(config: AdapterConfig) -> bool:
    """Whether an adapter can be stacked: its update is a product of two factors and nothing else."""
    return config.kind in ("lora", "rslora")


class AdapterStack:
    """Adapters by key, and which of them the rows of the next products use. Adapters that are not used cost nothing
    but memory."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._names = {id(layer): name for name, layer in module.named_modules()}
        self._layers: dict[str, _Layer] = {}
        self._places: dict[str, _Place] = {}
        self._selected: _Selected | None = None

    @property
    def loaded(self) -> tuple[str, ...]:
        """Keys, in the order in which they were loaded."""
        return tuple(self._places)

    def linear(self, layer: nn.Module) -> Function:
        """The function of a linear layer of the module, with the update of the adapter that each row uses."""
        if not isinstance(layer, nn.Linear | PackedLinear):
            return plain.linear(layer)
        name = self._names[id(layer)]
        self._layers[name] = _Layer.of(layer, self._dtype, lambda: self._selected)
        return self._layers[name]

    @torch.inference_mode()
    def load(self, key: str, tensors: Mapping[str, Tensor], config: AdapterConfig) -> None:
        """``tensors``: `adapters.update_tensors`, by the names of the module's layers: ".lora_A" (r, I), ".lora_B"
        (O, r)."""
        assert key not in self._places
        assert supports(config)
        tensors, config = as_plain(tensors, config)
        known = {f"{name}.{end}" for name in self._layers for end in (A, B)}
        assert set(tensors) <= known, "the adapter is of another model"
        end = max((place.end for place in self._places.values()), default=0)
        # All or nothing: if memory runs out in the middle, no layer has changed.
        made = [
            (layer, *layer.with_adapter(config.rank, tensors.get(f"{name}.{A}"), tensors.get(f"{name}.{B}")))
            for name, layer in self._layers.items()
        ]
        assert all(len(a) == len(b) == end + config.rank for _, a, b in made), "the adapter has another rank"
        for changed, a_RI, b_RO in made:
            changed.a_RI, changed.b_RO = a_RI, b_RO
        self._places[key] = _Place(end, config.rank, lora_scaling(config))

    @torch.inference_mode()
    def unload(self, key: str) -> None:
        gone = self._places.pop(key)
        for layer in self._layers.values():
            layer.remove(gone.start, gone.end)
        for other, place in self._places.items():
            if place.start > gone.start:
                self._places[other] = _Place(place.start - gone.rank, place.rank, place.scaling)
        self._selected = None

    def select(self, rows: Sequence[Use]) -> None:
        """Which adapter each row of the next products uses; or, if there is one ``Use``, all rows."""
        used = [(n, self._places[u.adapter], u.scale) for n, u in enumerate(rows) if u.adapter is not None and u.scale]
        if not used:
            self._selected = None
            return
        if len(used) == len(rows) and len(set(rows)) == 1:
            _, place, scale = used[0]
            self._selected = _Selected(slice(place.start, place.end), place.scaling * scale)
            return
        start, end = min(p.start for _, p, _ in used), max(p.end for _, p, _ in used)
        factor_BR = torch.zeros(len(rows), end - start, dtype=self._dtype)
        for n, place, scale in used:
            factor_BR[n, place.start - start : place.end - start] = place.scaling * scale
        self._selected = _Selected(slice(start, end), factor_BR)


class _Layer:
    """A linear layer, and the stacked factors of its adapters: a_RI and b_RO."""

    def __init__(self, base: Function, bias: Tensor | None, empty: tuple[Tensor, Tensor]) -> None:
        self.base, self.bias, (self.a_RI, self.b_RO) = base, bias, empty
        self.selected: Callable[[], _Selected | None] = lambda: None

    @classmethod
    def of(
        cls, layer: nn.Linear | PackedLinear, dtype: torch.dtype, selected: Callable[[], _Selected | None]
    ) -> _Layer:
        bias = layer.bias
        empty = torch.empty(0, layer.in_features, dtype=dtype), torch.empty(0, layer.out_features, dtype=dtype)
        base: Function = (
            partial(plain.product, layer.weight) if isinstance(layer, nn.Linear) else partial(_unpacked, layer)
        )
        made = cls(base, bias, empty)
        made.selected = selected
        return made

    def __call__(self, x: Tensor) -> Tensor:
        y, selected = self.base(x), self.selected()
        if selected is not None:
            a_rI, b_rO = self.a_RI[selected.ranks], self.b_RO[selected.ranks]
            small = plain.product(a_rI, x).mul_(selected.factor)
            y = y.addmv_(b_rO.T, small) if x.ndim == 1 else y.addmm_(small, b_rO)
        return y if self.bias is None else y + self.bias

    def with_adapter(self, rank: int, a_rI: Tensor | None, b_Or: Tensor | None) -> tuple[Tensor, Tensor]:
        """a_RI and b_RO with those of another adapter; of zeros if it does not change this layer."""
        own_a = self.a_RI.new_zeros(rank, self.a_RI.shape[1]) if a_rI is None else a_rI.to(self.a_RI.dtype)
        own_b = self.b_RO.new_zeros(rank, self.b_RO.shape[1]) if b_Or is None else b_Or.T.to(self.b_RO.dtype)
        return torch.cat((self.a_RI, own_a)), torch.cat((self.b_RO, own_b))

    def remove(self, start: int, end: int) -> None:
        self.a_RI, self.b_RO = (torch.cat((x[:start], x[end:])) for x in (self.a_RI, self.b_RO))


def _unpacked(layer: PackedLinear, x: Tensor) -> Tensor:
    return plain.product(layer.weight_in(x.dtype), x)
