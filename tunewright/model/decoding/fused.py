"""`FusedState`: steps of one token for each row, without modules.

At 135M parameters, modules and a cache that is copied for every token take longer than the arithmetic of a step.
`FusedState` does the same operations on the same numbers as the modules of the Llama family, so its logits are equal
bit for bit (`step_kernel` asks the model whether they are), and writes into its cache in place.

Axes: B rows, T tokens of the cache, V vocabulary, D width, I inputs, O outputs, R rank, H heads, G key-value heads, K
head width. In a step, one row may be a vector: (D,) instead of (B, D).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunewright.model.adapters import LoRALinear, adapted
from tunewright.model.attention import interface, prefixed
from tunewright.model.decoding.part import ROOM, Part
from tunewright.model.decoding.state import Pair, State

if TYPE_CHECKING:
    from tunewright.model.language_model import LanguageModel

Function = Callable[[Tensor], Tensor]
# How steps are computed: by modules, or without them, one row as a matrix ("matrix") or as a vector.
StepKernel = Literal["modules", "matrix", "vector"]


@dataclass(frozen=True)
class Layer:
    """The functions of a decoder layer. ``head_norms``: of queries and keys, for models that have them (Qwen3).
    ``per_group``: heads for each key-value head."""

    before: Function
    query: Function
    key: Function
    value: Function
    out: Function
    after: Function
    gate: Function
    up: Function
    down: Function
    activation: Function
    head_norms: tuple[Function, Function] | None
    scaling: float
    per_group: int

    @classmethod
    def of(cls, part: Any) -> Layer:
        attend, mlp = part.self_attn, part.mlp
        return cls(
            before=norm(part.input_layernorm),
            query=linear(attend.q_proj),
            key=linear(attend.k_proj),
            value=linear(attend.v_proj),
            out=linear(attend.o_proj),
            after=norm(part.post_attention_layernorm),
            gate=linear(mlp.gate_proj),
            up=linear(mlp.up_proj),
            down=linear(mlp.down_proj),
            activation=mlp.act_fn,
            head_norms=(norm(attend.q_norm), norm(attend.k_norm)) if hasattr(attend, "q_norm") else None,
            scaling=attend.scaling,
            per_group=attend.num_key_value_groups,
        )


def norm(module: nn.Module) -> Function:
    """A root mean square norm of the last axis."""
    weight = torch.as_tensor(module.weight)
    # As tensors, because torch converts a number anew in every call.
    eps, width = (weight.new_tensor(x, dtype=torch.float32) for x in (module.variance_epsilon, len(weight)))

    def normed(x: Tensor) -> Tensor:
        wide = x.float()
        variance = torch.addcdiv(eps, (wide * wide).sum(-1, keepdim=True), width)
        return torch.as_tensor(weight * (wide * variance.rsqrt_()).to(x.dtype))

    return normed


def linear(layer: nn.Module) -> Function:
    """``layer`` for inputs (B, I) or (I,), the factors of its adapter cast once."""
    base = layer.base if isinstance(layer, LoRALinear) else layer
    if not isinstance(base, nn.Linear) or type(base) is not nn.Linear or getattr(layer, "magnitude", None) is not None:
        return lambda x: torch.as_tensor(layer(x.view(-1, x.shape[-1]))).view(*x.shape[:-1], -1)
    weight, bias = base.weight, base.bias
    if bias is not None and not (isinstance(layer, LoRALinear) and layer.on):
        return lambda x: torch.addmv(bias, weight, x) if x.ndim == 1 else F.linear(x, weight, bias)
    product: Function = partial(_product, weight)
    if isinstance(layer, LoRALinear) and layer.on:
        product = _updated(product, layer.lora_A.to(weight.dtype), layer.lora_B.to(weight.dtype), layer.scaling)
    return product if bias is None else lambda x: product(x) + bias


def _product(weight_OI: Tensor, x: Tensor) -> Tensor:
    return torch.mv(weight_OI, x) if x.ndim == 1 else F.linear(x, weight_OI)


def _updated(product: Function, a_RI: Tensor, b_OR: Tensor, scaling: float) -> Function:
    """``product`` plus a low-rank update."""
    b_RO = b_OR.T
    exact = abs(math.frexp(scaling)[0]) == 0.5  # multiplying by a power of two commutes with rounding
    a_RI = a_RI * scaling if exact else a_RI

    def updated(x: Tensor) -> Tensor:
        y, small = product(x), _product(a_RI, x)
        if not exact:
            small.mul_(scaling)
        return y.addmv_(b_OR, small) if x.ndim == 1 else y.addmm_(small, b_RO)

    return updated


@cache
def _same_as_vector(outputs: int, inputs: int, rank: int) -> bool:
    """Whether, on this machine, the float32 update of one row is the same as a vector and as a matrix: kernels are
    chosen by shape."""
    random = torch.Generator().manual_seed(0)
    x_I, y_O = torch.randn(inputs, generator=random), torch.randn(outputs, generator=random)
    a_RI, b_OR = torch.randn(rank, inputs, generator=random), torch.randn(outputs, rank, generator=random)
    update = _updated(lambda x: y_O.expand(*x.shape[:-1], -1).clone(), a_RI, b_OR, 1.0)
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
        updates = [layer for layer in adapted(model.module).values() if layer.on]
        return cls(
            model,
            [Layer.of(layer) for layer in model.decoder.layers],
            norm(model.decoder.norm),
            linear(model.head),
            kernel == "vector" and all(_same_as_vector(len(x.lora_B), *x.lora_A.T.shape) for x in updates),
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
        hidden = self._through_layers(hidden, turn, self._attended)
        return self.head(self.norm(hidden)).view(rows, -1)

    def _turn(self, cos_B1K: Tensor, sin_B1K: Tensor) -> Pair:
        """Factors (B, H + 2G, 2, K / 2) of queries, keys and values, and of their other halves. Values are not
        turned."""
        groups = self.parts[0].cache[0].shape[2]
        heads = groups * self.layers[0].per_group
        cos, sin = (x.view(*x.shape[:2], 2, -1) for x in (cos_B1K, sin_B1K))
        sin = torch.stack((-sin[:, :, 0], sin[:, :, 1]), 2)
        turned, rest = (-1, heads + groups, -1, -1), (-1, groups, -1, -1)
        return (
            torch.cat((cos.expand(turned), torch.ones_like(cos).expand(rest)), 1),
            torch.cat((sin.expand(turned), torch.zeros_like(sin).expand(rest)), 1),
        )

    def _attended(self, number: int, x: Tensor, turn: Pair) -> Tensor:
        layer, width = self.layers[number], self.parts[0].cache[0].shape[4]
        all_BH2k = self._turned(layer, x, turn, width)
        rows = torch.split(all_BH2k, [len(part.next_B) for part in self.parts])
        out_NmK = [part.attended(number, own, layer.per_group) for part, own in zip(self.parts, rows, strict=True)]
        out = torch.cat(out_NmK) if len(out_NmK) > 1 else out_NmK[0]
        return layer.out(out.view(*x.shape[:-1], -1))

    def _through_layers(self, hidden: Tensor, turn: Pair, attended: Callable[[int, Tensor, Pair], Tensor]) -> Tensor:
        """Hidden states after all layers. ``attended``: the output of a layer's attention."""
        for number, layer in enumerate(self.layers):
            hidden = hidden + attended(number, layer.before(hidden), turn)
            x = layer.after(hidden)
            hidden = hidden + layer.down(layer.activation(layer.gate(x)) * layer.up(x))
        return hidden

    @staticmethod
    def _turned(layer: Layer, x: Tensor, turn: Pair, width: int) -> Tensor:
        """Scaled queries, keys and values of tokens, one for each row: (rows, H + 2G, 2, K / 2)."""
        q, k, v = layer.query(x), layer.key(x), layer.value(x)
        if layer.head_norms is not None:
            of_q, of_k = layer.head_norms
            q, k = (norm(part.view(*part.shape[:-1], -1, width)).flatten(-2) for norm, part in ((of_q, q), (of_k, k)))
        all_BH2k = torch.cat((q, k, v), -1).view(len(turn[0]), -1, 2, width // 2)
        all_BH2k = all_BH2k * turn[0] + all_BH2k.flip(2) * turn[1]
        all_BH2k[:, : q.shape[-1] // width].mul_(layer.scaling)
        return all_BH2k

    def extend(self, ids_Q: Tensor) -> Tensor:
        """Append several tokens to the only row; logits_QV after each of them. Their last bits may differ from those of
        `step`, because products of several rows are added in another order."""
        assert self.is_plain_row
        (part,), count = self.parts, len(ids_Q)
        part.make_room(count)
        hidden_QD = self.model.decoder.embed_tokens(ids_Q)
        position_Q1 = (part.next_B + torch.arange(count, device=ids_Q.device))[:, None]
        turn = self._turn(*self.model.decoder.rotary_emb(hidden_QD[:, None], position_Q1))
        hidden_QD = self._through_layers(hidden_QD, turn, self._attended_each)
        part.advance(count)
        return self.head(self.norm(hidden_QD))

    def _attended_each(self, number: int, x_QD: Tensor, turn: Pair) -> Tensor:
        """As `_attended`, for tokens that follow one another."""
        layer, (part,) = self.layers[number], self.parts
        cache_2GTK = part.cache[number][:, 0]
        _, groups, _, width = cache_2GTK.shape
        count, heads = len(x_QD), groups * layer.per_group
        all_QH2k = self._turned(layer, x_QD, turn, width)
        cache_2GTK[:, :, part.used : part.used + count] = (
            all_QH2k[:, heads:].reshape(count, 2, groups, width).permute(1, 2, 0, 3)
        )
        keys_GTK, values_GTK = cache_2GTK.narrow(2, 0, part.used + count)
        q_QGRK = all_QH2k[:, :heads].reshape(count, groups, layer.per_group, width)
        q_GmK = q_QGRK.transpose(0, 1).reshape(groups, -1, width)
        place_T = torch.arange(part.used + count, device=x_QD.device)
        later_QT = place_T > part.used + torch.arange(count, device=x_QD.device)[:, None]
        hidden_11mT = later_QT.repeat_interleave(layer.per_group, 0)[None, None]
        held = part.prefix[number] if part.prefix else None
        out_GmK = prefixed.over_prefix(q_GmK, keys_GTK, values_GTK, hidden_11mT, held)
        return layer.out(out_GmK.view(groups, count, -1, width).transpose(0, 1).reshape(count, heads * width))

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
            Layer.of(part)
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
