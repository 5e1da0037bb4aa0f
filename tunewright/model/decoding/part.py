"""Rows of a batch that have a prefix in common, with their own keys and values.

Axes: B rows, T tokens of the cache, H heads, G key-value heads, K head width, N = B * G, m heads for each of G.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tunewright.model.attention import prefixed
from tunewright.model.decoding.state import Pair, State

ROOM = 64  # tokens that a cache grows by


@dataclass
class Part:
    """Rows of a `FusedState` that have the prefix ``prefix`` in common. ``cache``: their own keys and values
    (2, B, G, T, K) of each layer, of which ``used`` tokens are filled. ``padding_B11T``: the padding of the prompts, if
    there is any. ``next_B``: each row's next position."""

    cache: list[Tensor]
    prefix: tuple[Pair, ...]
    used: int
    padding_B11T: Tensor | None
    next_B: Tensor

    @classmethod
    def after(cls, states: Iterable[State], rows: int, used: int, room: int = ROOM) -> Part:
        """The ``rows`` of all states, which have the same prefix, padded on the left to ``used`` own tokens, with
        ``room`` for as many more. Each state may be dropped when the next is made, so that their caches are not in
        memory together."""
        cache: list[Tensor] = []
        prefix: tuple[Pair, ...] = ()
        real, positions, start = [], [], 0
        for state in states:
            prefix, left = state.prefix, used - state.real_BT.shape[1]
            for n, layer in enumerate(state.cache.layers):
                if start == 0:
                    _, groups, _, width = layer.keys.shape
                    cache.append(layer.keys.new_empty(2, rows, groups, used + room, width))
                own = cache[n][:, start : start + len(state.next_B)]
                own[..., :left, :] = 0  # a weight of zero times whatever was there might be NaN
                own[0, ..., left:used, :], own[1, ..., left:used, :] = layer.keys, layer.values
            start += len(state.next_B)
            real.append(F.pad(state.real_BT, (left, 0)))
            positions.append(state.next_B)
            del state, layer, own
        return cls(cache, prefix, used, _if_any(~torch.cat(real).bool()[:, None, None]), torch.cat(positions))

    def make_room(self, count: int) -> None:
        while self.used + count > self.cache[0].shape[3]:
            for n, full in enumerate(self.cache):  # one after another, so that there are never two of all
                self.cache[n] = _grown(full)

    def advance(self, count: int) -> None:
        """Take the next ``count`` tokens, whose keys and values are in the cache; if negative, forget the last."""
        self.used += count
        self.next_B = self.next_B + count

    def keep(self, rows: Tensor) -> Tensor:
        """Only these rows, given in increasing order; returns them in their new order, in which the last fill the
        places of those that leave: copying the others would take longer than a step."""
        count = len(rows)
        order = torch.arange(count, device=rows.device)
        places = order[~torch.isin(order, rows)]
        order[places] = moved = rows[rows >= count]
        for n, every in enumerate(self.cache):
            every[:, places] = every[:, moved]
            self.cache[n] = every[:, :count]
        self.next_B = self.next_B[order]
        if self.padding_B11T is not None:
            self.padding_B11T = _if_any(self.padding_B11T[order])
        return order

    def attended(self, number: int, all_BH2k: Tensor, per_group: int) -> Tensor:
        """out_NmK (N = B * G) of scaled queries, keys and values (B, H + 2G, 2, K / 2), after adding the latter to the
        cache of layer ``number``."""
        cache_2BGTK = self.cache[number]
        _, rows, groups, _, width = cache_2BGTK.shape
        heads = groups * per_group
        new_B2GK = all_BH2k[:, heads:].reshape(rows, 2, groups, width)
        cache_2BGTK.select(3, self.used).copy_(new_B2GK.transpose(0, 1))
        keys_NTK, values_NTK = cache_2BGTK.narrow(3, 0, self.used + 1).flatten(1, 2)
        q_NmK = all_BH2k[:, :heads].reshape(rows * groups, -1, width)
        held = self.prefix[number] if self.prefix else None
        return prefixed.one_token(q_NmK, keys_NTK, values_NTK, self.padding_B11T, held)


def _if_any(padding: Tensor) -> Tensor | None:
    return padding if padding.any() else None


def _grown(cache_2BGTK: Tensor) -> Tensor:
    *shape, _, width = cache_2BGTK.shape
    return torch.cat((cache_2BGTK, cache_2BGTK.new_empty(*shape, ROOM, width)), 3)
