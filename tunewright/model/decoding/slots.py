"""A batch whose rows join and leave between steps, each with its own tokens, adapter and scale.

Unlike in `FusedState`, rows have nothing in common, and are not padded: each has as many tokens in the cache as it has.

Axes: B rows, C chunks of prompts, T tokens of the cache, Q new tokens, G key-value heads, H heads, K head width, V
vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunewright.model.attention import prefixed
from tunewright.model.decoding.layer import Layer, norm, through, turn_of
from tunewright.model.decoding.layer import linear as plain_linear
from tunewright.model.decoding.stack import AdapterStack, Use
from tunewright.model.decoding.state import Pair
from tunewright.model.language_model import LanguageModel

Cache = list[Tensor]  # keys and values of each layer: (2, G, T, K) of one row, (2, B, G, T, K) of several
MORE_ROWS, MORE_TOKENS = 4, 64  # that the cache grows by


@dataclass(frozen=True)
class Chunk:
    """``ids`` to read: they follow the ``used`` tokens of ``cache``, and are added to it."""

    cache: Cache
    used: int
    ids: Sequence[int]
    use: Use


class _Steps:
    """Where the new tokens of the rows are: ``hidden_B11T``: which places of the cache a row has not filled; None if
    all have as many."""

    def __init__(self, used: Sequence[int], rows: int) -> None:
        self.used_B, self.row_B = torch.tensor(used[:rows], dtype=torch.long), torch.arange(rows)
        self.longest = max(used[:rows], default=-1) + 1
        unequal = rows and min(used[:rows]) + 1 < self.longest
        self.hidden_B11T = (torch.arange(self.longest) > self.used_B[:, None])[:, None, None] if unequal else None


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

    def read(self, cache: Cache, used: int, ids: Sequence[int], use: Use) -> Tensor:
        """logits_V after ``ids``, which follow the ``used`` tokens of ``cache`` and are added to it."""
        _, logits_CV = self.advance([], [Chunk(cache, used, ids, use)])
        return logits_CV[0]

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append a token to every row; logits_BV after it."""
        logits_BV, _ = self.advance(tokens, [])
        return logits_BV

    @torch.inference_mode()
    def advance(self, tokens: Sequence[int], chunks: Sequence[Chunk]) -> tuple[Tensor, Tensor]:
        """Both at once, because a pass over the weights costs the same for a few tokens as for one: append a token to
        every row, and read chunks of prompts. Returns logits_BV after the rows' tokens (none if ``tokens`` is empty),
        and logits_CV after the last token of each chunk."""
        rows = len(tokens)
        assert rows in (0, self.rows)
        sizes = [rows, *(len(c.ids) for c in chunks)]
        steps = _Steps(self._used, rows)
        if rows:
            self._make_room(rows, steps.longest)
        uses = [*(self._uses if rows else ()), *(c.use for c in chunks for _ in c.ids)]
        self.stack.select(uses)
        hidden = self.model.decoder.embed_tokens(torch.tensor([*tokens, *(i for c in chunks for i in c.ids)]))
        places = [steps.used_B, *(c.used + torch.arange(len(c.ids)) for c in chunks)]
        turn = self._turn(hidden, torch.cat(places))

        def attended(number: int, x: Tensor) -> Tensor:
            layer = self._layers[number]
            own_BH2k, *others = torch.split(layer.turned(x, turn, self._width), sizes)
            parts = [self._attended_rows(number, own_BH2k, steps)] if rows else []
            for chunk, all_QH2k in zip(chunks, others, strict=True):
                parts.append(layer.attended_chunk(all_QH2k, chunk.cache[number], chunk.used, None))
            return layer.out(torch.cat(parts).view(*x.shape[:-1], -1))

        alone = self._as_vector and len(hidden) == 1
        hidden = through(self._layers, hidden[0] if alone else hidden, attended).view(sum(sizes), -1)
        if rows:
            self._used = [n + 1 for n in self._used]
        ends = itertools.accumulate(sizes)
        last = torch.tensor([*range(rows), *(end - 1 for end in itertools.islice(ends, 1, None))])
        wanted = hidden[0] if alone else hidden[last]
        logits = self._head(self._norm(wanted)).view(len(last), -1)
        return logits[:rows], logits[rows:]

    def _attended_rows(self, number: int, all_BH2k: Tensor, steps: _Steps) -> Tensor:
        """What the new token of every row attends to, (B, H * K), after adding its keys and values to the cache."""
        rows, heads = len(all_BH2k), self._groups * self._layers[number].per_group
        new_B2GK = all_BH2k[:, heads:].reshape(rows, 2, self._groups, self._width)
        cache_2BGTK = self._cache[number]
        cache_2BGTK[:, steps.row_B, :, steps.used_B] = new_B2GK
        keys_NTK, values_NTK = cache_2BGTK[:, :rows, :, : steps.longest].flatten(1, 2)
        q_NmK = all_BH2k[:, :heads].reshape(rows * self._groups, -1, self._width)
        return prefixed.one_token(q_NmK, keys_NTK, values_NTK, steps.hidden_B11T, None).view(rows, -1)

    @torch.inference_mode()
    def join(self, cache: Cache, used: int, use: Use) -> None:
        """Another row, the last one, after the ``used`` tokens of ``cache``, which is copied."""
        self._make_room(self.rows + 1, used + 1)
        for every, own in zip(self._cache, cache, strict=True):
            every[:, self.rows, :, :used] = own[:, :, :used]
        self._used.append(used)
        self._uses.append(use)

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
        have_rows, have_tokens = self.allocated
        if rows <= have_rows and tokens <= have_tokens:
            return
        new_rows = have_rows if rows <= have_rows else rows + MORE_ROWS
        self._reallocate(new_rows, have_tokens if tokens <= have_tokens else tokens + MORE_TOKENS)

    def _reallocate(self, new_rows: int, new_tokens: int) -> None:
        shape = (2, new_rows, self._groups, new_tokens, self._width)
        tokens = max(self._used, default=0)
        for number in range(len(self._layers)):  # one after another, so that there are never two of all
            # Zeros, because a weight of zero times whatever was there might be NaN.
            made = self.model.head_VD.new_zeros(shape)
            if number == len(self._cache):
                self._cache.append(made)
            else:
                made[:, : self.rows, :, :tokens] = self._cache[number][:, : self.rows, :, :tokens]
                self._cache[number] = made

    def shrink(self) -> None:
        """Give back the memory of rows and tokens that have left."""
        if self._used:
            self._reallocate(self.rows, max(self._used) + MORE_TOKENS)

    @property
    def allocated(self) -> tuple[int, int]:
        """Rows and tokens of each that there is memory for."""
        return (self._cache[0].shape[1], self._cache[0].shape[3]) if self._cache else (0, 0)

    def clear(self) -> None:
        """All rows leave, whatever state the cache is in."""
        self._cache, self._used, self._uses = [], [], []


def _head_width(config: object) -> int:
    width = getattr(config, "head_dim", None)
    return width or config.hidden_size // config.num_attention_heads  # type: ignore[attr-defined, no-any-return]
