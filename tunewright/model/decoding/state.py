"""A batch in the middle of decoding: `State` computes new tokens with transformers' modules.

Axes: B rows, Q new tokens, T tokens of the cache, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import DynamicCache

    from tunewright.model.language_model import LanguageModel

Pair = tuple[Tensor, Tensor]


@cache
def cache_argument(forward: Callable[..., object]) -> str:
    """The name of the argument of a transformers model that is its cache, which 5.24 renamed."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


@dataclass
class State:
    """A batch's cache of own tokens, and the prefix that its rows share (held once).

    ``real_BT`` marks the cache's tokens that are not padding; ``next_B`` is each row's next position.
    """

    model: LanguageModel
    cache: DynamicCache
    prefix: tuple[Pair, ...]
    prefixed: bool
    real_BT: Tensor
    next_B: Tensor

    def feed(self, ids_BQ: Tensor, real_BQ: Tensor, last_only: bool = False) -> Tensor:
        """Append tokens; logits (B, Q, V) after each of them, or (B, 1, V) after the last. Padding is left or
        right."""
        position_BQ = self.next_B[:, None] + (real_BQ.cumsum(1) - 1).clamp(min=0)
        self.next_B = position_BQ[:, -1] + 1
        self.real_BT = torch.cat([self.real_BT, real_BQ], 1)
        cache = cache_argument(type(self.model.decoder if self.model.plain_head else self.model.module).forward)
        given = {"position_ids": position_BQ, cache: self.cache, "use_cache": True}
        if self.prefixed:
            new, own = ids_BQ.shape[1], self.real_BT.shape[1]
            order = torch.arange(own, device=ids_BQ.device)
            back_QT = order[own - new :, None] - order[None, :]
            # A padding token sees itself: seeing nothing would be NaN, and NaN times a weight of zero is NaN.
            given |= {"prefix": self.prefix, "seen": (self.real_BT.bool()[:, None] & (back_QT >= 0)) | (back_QT == 0)}
        else:
            given["attention_mask"] = self.real_BT
        if not self.model.plain_head:
            return torch.as_tensor(self.model.module(ids_BQ, logits_to_keep=1 if last_only else 0, **given).logits)
        hidden_BQD = self.model.decoder(ids_BQ, **given).last_hidden_state
        # A view of the last position is not contiguous, and torch would then copy the head's weights for every row.
        return torch.as_tensor(self.model.head(hidden_BQD[:, -1:].contiguous() if last_only else hidden_BQD))

    def step(self, token_B: Tensor) -> Tensor:
        """Append a token to every row; logits_BV after it."""
        return self.feed(token_B[:, None], torch.ones_like(token_B)[:, None])[:, -1]

    def keep(self, rows: Tensor) -> Tensor:
        """Only these rows, given in increasing order, continue; returns them in the order that they now have. Here, but
        not in a `FusedState`, a row may also be given several times, and is then copied."""
        self.cache.batch_select_indices(rows)
        self.real_BT, self.next_B = self.real_BT[rows], self.next_B[rows]
        return rows
