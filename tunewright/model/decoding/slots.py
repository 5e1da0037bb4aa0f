"""A batch whose rows join and leave between steps, each with its own tokens, adapter and scale.

Unlike in `FusedState`, rows have nothing in common, and are not padded: each has as many tokens in the cache as it has.

Axes: B rows, T tokens of the cache, Q new tokens, G key-value heads, H heads, K head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tunewright.model.attention import prefixed
from tunewright.model.decoding.layer import Layer, norm, through, turn_of
from tunewright.model.decoding.layer import linear as plain_linear
from tunewright.model.decoding.stack import AdapterStack, Use
from tunewright.model.decoding.state import Pair
from tunewright.model.language_model import LanguageModel

Cache = list[Tensor]  # keys and values of each layer: (2, G, T, K) of one row, (2, B, G, T, K) of several
GROWTH = 1.5


class Slots:
    """``stack``: the adapters that rows may use."""

    def __init__(self, model: LanguageModel) -> None:
        assert model.decoding != "modules", "steps of this model need its modules"
        self.model = model
        self.stack = AdapterStack(model.module, model.head_VD.dtype)
        self._layers = [Layer.of(layer, self.stack.linear) for layer in model.decoder.layers]
        self._norm, self._head = norm(model.decoder.norm), plain_linear(model.head)
        self._as_vector = model.decoding == "vector"
        config = model.module.config.get_text_config()
        self._groups: int = config.num_key_value_heads
        self._width = _head_width(config)
        self._cache: Cache = []
        self._used: list[int] = []
        self._uses: list[Use] = []

    @property
    def rows(self) -> int:
        return len(self._used)

    @property
    def bytes_per_token(self) -> int:
        """Of the cache of one row."""
        each: int = self.model.head_VD.element_size()
        return 2 * len(self._layers) * self._groups * self._width * each

    def new_cache(self, tokens: int) -> Cache:
        """Of one row, for so many tokens."""
        shape = (2, self._groups, tokens, self._width)
        return [self.model.head_VD.new_empty(shape) for _ in self._layers]

    @torch.inference_mode()
    def read(self, cache: Cache, used: int, ids: Sequence[int], use: Use) -> Tensor:
        """logits_V after ``ids``, which follow the ``used`` tokens of ``cache`` and are added to it."""
        self.stack.select([use])
        ids_Q = torch.tensor(list(ids))
        hidden_QD = self.model.decoder.embed_tokens(ids_Q)
        turn = self._turn(hidden_QD, used + torch.arange(len(ids_Q)))

        def attended(number: int, x_QD: Tensor) -> Tensor:
            layer = self._layers[number]
            return layer.attended_chunk(layer.turned(x_QD, turn, self._width), cache[number], used, None)

        hidden_QD = through(self._layers, hidden_QD, attended)
        return self._head(self._norm(hidden_QD[-1]))

    @torch.inference_mode()
    def join(self, cache: Cache, used: int, use: Use) -> None:
        """Another row, the last one, after the ``used`` tokens of ``cache``, which is copied."""
        self._make_room(self.rows + 1, used + 1)
        for every, own in zip(self._cache, cache, strict=True):
            every[:, self.rows, :, :used] = own[:, :, :used]
        self._used.append(used)
        self._uses.append(use)

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append a token to every row; logits_BV after it."""
        rows, longest = self.rows, max(self._used) + 1
        assert len(tokens) == rows
        self._make_room(rows, longest)
        self.stack.select(self._uses)
        used_B, row_B = torch.tensor(self._used), torch.arange(rows)
        hidden = self.model.decoder.embed_tokens(torch.tensor(list(tokens)))
        turn = self._turn(hidden, used_B)
        hidden_B11T = (torch.arange(longest) > used_B[:, None])[:, None, None]
        unequal = min(self._used) + 1 < longest

        def attended(number: int, x: Tensor) -> Tensor:
            layer = self._layers[number]
            all_BH2k = layer.turned(x, turn, self._width)
            heads = self._groups * layer.per_group
            new_B2GK = all_BH2k[:, heads:].reshape(rows, 2, self._groups, self._width)
            cache_2BGTK = self._cache[number]
            cache_2BGTK[:, row_B, :, used_B] = new_B2GK
            keys_NTK, values_NTK = cache_2BGTK[:, :rows, :, :longest].flatten(1, 2)
            q_NmK = all_BH2k[:, :heads].reshape(rows * self._groups, -1, self._width)
            out = prefixed.one_token(q_NmK, keys_NTK, values_NTK, hidden_B11T if unequal else None, None)
            return layer.out(out.view(*x.shape[:-1], -1))

        hidden = through(self._layers, hidden[0] if self._as_vector and rows == 1 else hidden, attended)
        self._used = [n + 1 for n in self._used]
        return self._head(self._norm(hidden)).view(rows, -1)

    @torch.inference_mode()
    def leave(self, row: int) -> None:
        """The last row takes the place of ``row``."""
        last = self.rows - 1
        if row != last:
            used = self._used[last]
            for every in self._cache:
                every[:, row, :, :used] = every[:, last, :, :used]
            self._used[row], self._uses[row] = self._used[last], self._uses[last]
        self._used.pop()
        self._uses.pop()
        if not self._used:
            self._cache = []

    def _turn(self, hidden_BD: Tensor, position_B: Tensor) -> Pair:
        cos, sin = self.model.decoder.rotary_emb(hidden_BD[:, None], position_B[:, None])
        return turn_of(cos, sin, self._groups * self._layers[0].per_group, self._groups)

    def _make_room(self, rows: int, tokens: int) -> None:
        have_rows, have_tokens = (self._cache[0].shape[1], self._cache[0].shape[3]) if self._cache else (0, 0)
        if rows <= have_rows and tokens <= have_tokens:
            return
        new_rows = have_rows if rows <= have_rows else max(rows, int(GROWTH * have_rows))
        new_tokens = have_tokens if tokens <= have_tokens else max(tokens + 64, int(GROWTH * have_tokens))
        shape = (2, new_rows, self._groups, new_tokens, self._width)
        for number in range(len(self._layers)):  # one after another, so that there are never two of all
            # Zeros, because a weight of zero times whatever was there might be NaN.
            grown = self.model.head_VD.new_zeros(shape)
            if self._cache and number < len(self._cache):
                old = self._cache[number]
                grown[:, : self.rows, :, :have_tokens] = old[:, : self.rows]
                self._cache[number] = grown
            else:
                self._cache.append(grown)


def _head_width(config: object) -> int:
    width = getattr(config, "head_dim", None)
    return width or config.hidden_size // config.num_attention_heads  # type: ignore[attr-defined, no-any-return]
