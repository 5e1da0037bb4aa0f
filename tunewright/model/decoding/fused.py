"""`FusedState`: steps of one token for each row, without modules.

At 135M parameters, modules and a cache that is copied for every token take longer than the arithmetic of a step.
`FusedState` does the same operations on the same numbers as the modules of the Llama family, so its logits are equal
bit for bit (`step_kernel` asks the model whether they are), and writes into its cache in place.

Axes: B rows, Q new tokens, T tokens of the cache, V vocabulary, D width, I inputs, O outputs, R rank, K head width. In
a step, one row may be a vector: (D,) instead of (B, D).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from tunewright.model.adapters import adapted
from tunewright.model.attention import interface
from tunewright.model.decoding.layer import Function, Layer, linear, norm, through, turn_of, updated
from tunewright.model.decoding.part import ROOM, Part
from tunewright.model.decoding.state import Pair, State

if TYPE_CHECKING:
    from tunewright.model.language_model import LanguageModel

# How steps are computed: by modules, or without them, one row as a matrix ("matrix") or as a vector.
StepKernel = Literal["modules", "matrix", "vector"]


@cache
def _same_as_vector(outputs: int, inputs: int, rank: int) -> bool:
    """Whether, on this machine, the float32 update of one row is the same as a vector and as a matrix: kernels are
    chosen by shape."""
    random = torch.Generator().manual_seed(0)
    x_I, y_O = torch.randn(inputs, generator=random), torch.randn(outputs, generator=random)
    a_RI, b_OR = torch.randn(rank, inputs, generator=random), torch.randn(outputs, rank, generator=random)
    update = updated(lambda x: y_O.expand(*x.shape[:-1], -1).clone(), a_RI, b_OR, 1.0)
    return torch.equal(update(x_I), update(x_I[None])[0])


@dataclass
class FusedState:
    """As `State`, of rows that are in one or several parts. ``as_vector``: one row is computed as a vector."""

    model: LanguageModel
    layers: list[Layer]
    norm: Function
    head: Function
    as_vector: bool
    parts: list[Part]

    @classmethod
    def of(cls, model: LanguageModel, part: Part, kernel: StepKernel) -> FusedState:
        updates = [layer.factors() for layer in adapted(model.module).values() if layer.on]
        return cls(
            model,
            [Layer.of(layer, linear) for layer in model.decoder.layers],
            norm(model.decoder.norm),
            linear(model.head),
            kernel == "vector" and all(_same_as_vector(len(b_OR), *a_RI.T.shape) for a_RI, b_OR in updates),
            [part],
        )

    @classmethod
    def after(cls, state: State, kernel: StepKernel) -> FusedState:
        """The state after the same tokens."""
        return cls.of(state.model, Part.after([state], *state.real_BT.shape), kernel)

    @classmethod
    def together(cls, states: Sequence[FusedState]) -> FusedState:
        """The rows of all states of one model, in order. Only attention is computed part by part: the weights are read
        once for all."""
        return replace(states[0], parts=[part for state in states for part in state.parts])

    @property
    def shape(self) -> tuple[int, ...]:
        """What decides the kernels of a step: rows and (in steps of `ROOM`) tokens of each part."""
        return tuple(n for part in self.parts for n in (len(part.next_B), part.used // ROOM))

    @property
    def rows(self) -> int:
        return sum(len(part.next_B) for part in self.parts)

    @property
    def is_plain_row(self) -> bool:
        """Whether there is one row, without padding: what `extend` needs."""
        return len(self.parts) == 1 and len(self.parts[0].next_B) == 1 and self.parts[0].padding_B11T is None

    def step(self, token_B: Tensor) -> Tensor:
        """Append a token to every row; logits_BV after it."""
        logits_BV = self.logits_after(token_B)
        self.advance()
        return logits_BV

    def advance(self) -> None:
        """Take the step whose logits were computed last."""
        for part in self.parts:
            part.advance(1)

    def logits_after(self, token_B: Tensor) -> Tensor:
        """logits_BV of `step`, without the step: the state is as before."""
        for part in self.parts:
            part.make_room(1)
        decoder, rows = self.model.decoder, len(token_B)
        hidden = decoder.embed_tokens(token_B)
        next_B = torch.cat([part.next_B for part in self.parts])
        turn = self._turn(*decoder.rotary_emb(hidden[:, None], next_B[:, None]))
        if self.as_vector and rows == 1:
            hidden = hidden[0]
        hidden = through(self.layers, hidden, lambda number, x: self._attended(number, x, turn))
        return self.head(self.norm(hidden)).view(rows, -1)

    def _turn(self, cos_B1K: Tensor, sin_B1K: Tensor) -> Pair:
        groups = self.parts[0].cache[0].shape[2]
        return turn_of(cos_B1K, sin_B1K, groups * self.layers[0].per_group, groups)

    def _attended(self, number: int, x: Tensor, turn: Pair) -> Tensor:
        layer, width = self.layers[number], self.parts[0].cache[0].shape[4]
        all_BH2k = layer.turned(x, turn, width)
        rows = torch.split(all_BH2k, [len(part.next_B) for part in self.parts])
        out_NmK = [part.attended(number, own, layer.per_group) for part, own in zip(self.parts, rows, strict=True)]
        out = torch.cat(out_NmK) if len(out_NmK) > 1 else out_NmK[0]
        return layer.out(out.view(*x.shape[:-1], -1))

    def extend(self, ids_Q: Tensor) -> Tensor:
        """Append several tokens to the only row; logits_QV after each of them. Their last bits may differ from those of
        `step`, because products of several rows are added in another order."""
        assert self.is_plain_row
        (part,), count = self.parts, len(ids_Q)
        part.make_room(count)
        hidden_QD = self.model.decoder.embed_tokens(ids_Q)
        position_Q1 = (part.next_B + torch.arange(count, device=ids_Q.device))[:, None]
        turn = self._turn(*self.model.decoder.rotary_emb(hidden_QD[:, None], position_Q1))
        hidden_QD = through(self.layers, hidden_QD, lambda number, x: self._attended_each(number, x, turn))
        part.advance(count)
        return self.head(self.norm(hidden_QD))

    def _attended_each(self, number: int, x_QD: Tensor, turn: Pair) -> Tensor:
        """As `_attended`, for tokens that follow one another."""
        layer, (part,) = self.layers[number], self.parts
        cache_2GTK = part.cache[number][:, 0]
        held = part.prefix[number] if part.prefix else None
        all_QH2k = layer.turned(x_QD, turn, cache_2GTK.shape[3])
        return layer.out(layer.attended_chunk(all_QH2k, cache_2GTK, part.used, held))

    def rewind(self, count: int) -> None:
        """Forget the last tokens."""
        for part in self.parts:
            part.advance(-count)

    def keep(self, rows: Tensor) -> Tensor:
        """As `State.keep`."""
        kept, orders, start = [], [], 0
        for part in self.parts:
            end = start + len(part.next_B)
            own = rows[(rows >= start) & (rows < end)] - start
            if len(own):
                orders.append(start + (part.keep(own) if len(own) < len(part.next_B) else own))
                kept.append(part)
            start = end
        self.parts = kept
        return torch.cat(orders)


@torch.no_grad()
def step_kernel(model: LanguageModel) -> StepKernel:
    """The fastest kernel to compute steps that gives the logits of the model's own modules, bit for bit; asked of the
    model itself."""
    from transformers import DynamicCache

    config = model.module.config.get_text_config()
    ids_BT = torch.arange(1, 7, device=model.device)[None] % config.vocab_size
    kernels: list[StepKernel] = ["vector", "matrix"] if model.head_VD.dtype == torch.float32 else ["matrix"]
    try:
        for part in model.decoder.layers:  # most models of another form end here
            Layer.of(part, linear)
        # Also near the end: some architectures scale by position only there.
        for start in (0, max(0, config.max_position_embeddings - 8)):
            next_B = torch.full_like(ids_BT[:, 0], start)
            state = State(model, DynamicCache(config=model.module.config), (), True, ids_BT[:, :0], next_B)
            with interface.attending(model.module, interface.PREFIXED):
                state.feed(ids_BT, torch.ones_like(ids_BT))
                logits = {kernel: FusedState.after(state, kernel).step(ids_BT[:, 0]) for kernel in kernels}
                own = state.step(ids_BT[:, 0])
            kernels = [kernel for kernel in kernels if torch.equal(logits[kernel], own)]
        return next(iter(kernels), "modules")
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError):
        return "modules"
