"""A batch in the middle of decoding: `State` computes new tokens with transformers' modules, `FusedState` without.

At 135M parameters, modules and a cache that is copied for every token take longer than the arithmetic of a step.
`FusedState` does the same operations on the same numbers as the modules of the Llama family, so its logits are equal
bit for bit (`fits` tells whether they are), and writes into its cache in place.

Axes: B rows, Q new tokens, T tokens of the cache, V vocabulary, D width, I inputs, O outputs, R rank, H heads, G
key-value heads, M heads for each of them, K head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunewright.model import attention
from tunewright.model.adapters import LoRALinear

if TYPE_CHECKING:
    from transformers import DynamicCache

    from tunewright.model.language_model import LanguageModel

ROOM = 64  # tokens that a cache grows by
Function = Callable[[Tensor], Tensor]
Pair = tuple[Tensor, Tensor]


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
        given = {"position_ids": position_BQ, "past_key_values": self.cache, "use_cache": True}
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

    def keep(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.real_BT, self.next_B = self.real_BT[rows], self.next_B[rows]


@dataclass(frozen=True)
class Layer:
    """The functions of a decoder layer. ``head_norms``: of queries and keys, for models that have them (Qwen3)."""

    norms: tuple[Function, Function]
    query: Function
    key: Function
    value: Function
    out: Function
    gate: Function
    up: Function
    down: Function
    activation: Function
    head_norms: tuple[Function, Function] | None
    scaling: float
    head_width: int

    @classmethod
    def of(cls, part: nn.Module) -> Layer:
        attend, mlp = part.self_attn, part.mlp
        return cls(
            (norm(part.input_layernorm), norm(part.post_attention_layernorm)),
            *map(linear, (attend.q_proj, attend.k_proj, attend.v_proj, attend.o_proj)),
            *map(linear, (mlp.gate_proj, mlp.up_proj, mlp.down_proj)),
            mlp.act_fn,
            (norm(attend.q_norm), norm(attend.k_norm)) if hasattr(attend, "q_norm") else None,
            attend.scaling,
            attend.head_dim,
        )


def norm(module: nn.Module) -> Function:
    """A root mean square norm."""
    weight = module.weight
    # As tensors, because torch converts a number anew in every call.
    eps, width = (weight.new_tensor(x, dtype=torch.float32) for x in (module.variance_epsilon, len(weight)))

    def normed(x: Tensor) -> Tensor:
        wide = x.float()
        variance = torch.addcdiv(eps, (wide * wide).sum(-1, keepdim=True), width)
        return weight * (wide * variance.rsqrt_()).to(x.dtype)

    return normed


def linear(layer: nn.Module) -> Function:
    """``layer`` for inputs (B, I), the factors of its adapter cast once."""
    if type(layer) is nn.Linear and layer.bias is not None:
        return partial(F.linear, weight=layer.weight, bias=layer.bias)
    if type(layer) is nn.Linear:
        return partial(_product, layer.weight)
    if not isinstance(layer, LoRALinear) or layer.magnitude is not None:
        return layer
    weight, bias, scaling = layer.base.weight, layer.base.bias, layer.scaling
    a_RI, b_RO = layer.lora_A.to(weight.dtype), layer.lora_B.T.to(weight.dtype)
    if exact := abs(math.frexp(scaling)[0]) == 0.5:  # multiplying by a power of two commutes with rounding
        a_RI = a_RI * scaling

    def adapted(x_BI: Tensor) -> Tensor:
        y_BO = _product(weight, x_BI)
        if layer.on:
            small_BR = F.linear(x_BI, a_RI)
            y_BO.addmm_(small_BR if exact else small_BR.mul_(scaling), b_RO)
        return y_BO if bias is None else y_BO + bias

    return adapted


def _product(weight_OI: Tensor, x_BI: Tensor) -> Tensor:
    # For one row, torch's general product of bfloat16 matrices first packs the weights, which costs more than the rest.
    if len(x_BI) == 1:
        return torch.mv(weight_OI, x_BI.view(-1)).unsqueeze_(0)
    return F.linear(x_BI, weight_OI)


@dataclass
class FusedState:
    """As `State`. ``cache``: keys and values (B, G, T, K) of each layer, of which ``used`` tokens are filled.
    ``padding_B11T``: the padding of the prompts, if there is any."""

    model: LanguageModel
    layers: list[Layer]
    norm: Function
    cache: list[Pair]
    prefix: tuple[Pair, ...]
    used: int
    padding_B11T: Tensor | None
    next_B: Tensor

    @classmethod
    def after(cls, state: State) -> FusedState:
        """The state after the same tokens."""
        layers = [Layer.of(part) for part in state.model.decoder.layers]
        cache = [(layer.keys, layer.values) for layer in state.cache.layers]
        padding_B11T = _if_any(~state.real_BT.bool()[:, None, None])
        last = norm(state.model.decoder.norm)
        return cls(state.model, layers, last, cache, state.prefix, state.real_BT.shape[1], padding_B11T, state.next_B)

    def step(self, token_B: Tensor) -> Tensor:
        """Append a token to every row; logits_BV after it."""
        decoder = self.model.decoder
        if self.used == self.cache[0][0].shape[2]:
            self.cache = [(_grown(keys), _grown(values)) for keys, values in self.cache]
        hidden_BD = decoder.embed_tokens(token_B)
        cos_B1K, sin_B1K = decoder.rotary_emb(hidden_BD[:, None], self.next_B[:, None])
        half = cos_B1K.shape[2] // 2
        turn = cos_B1K, torch.cat((-sin_B1K[..., :half], sin_B1K[..., half:]), 2)
        for number, layer in enumerate(self.layers):
            before, after = layer.norms
            hidden_BD = hidden_BD + self._attended(number, layer, before(hidden_BD), turn)
            x_BD = after(hidden_BD)
            hidden_BD = hidden_BD + layer.down(layer.activation(layer.gate(x_BD)) * layer.up(x_BD))
        self.used += 1
        self.next_B = self.next_B + 1
        return torch.as_tensor(self.model.head(self.norm(hidden_BD)))

    def _attended(self, number: int, layer: Layer, x_BD: Tensor, turn: Pair) -> Tensor:
        rows, (cos_B1K, sin_B1K) = len(x_BD), turn
        q_BHK, k_BGK, v_BGK = (
            project(x_BD).view(rows, -1, layer.head_width) for project in (layer.query, layer.key, layer.value)
        )
        if layer.head_norms is not None:
            q_BHK, k_BGK = layer.head_norms[0](q_BHK), layer.head_norms[1](k_BGK)
        both = torch.cat((q_BHK, k_BGK), 1)
        both = both * cos_B1K + both.roll(layer.head_width // 2, 2) * sin_B1K
        heads, groups = q_BHK.shape[1], k_BGK.shape[1]
        keys, values = self.cache[number]
        keys.select(2, self.used).copy_(both[:, heads:])
        values.select(2, self.used).copy_(v_BGK)
        out_BGMK = attention.over_prefix(
            (both[:, :heads] * layer.scaling).reshape(rows, groups, -1, layer.head_width),
            keys.narrow(2, 0, self.used + 1),
            values.narrow(2, 0, self.used + 1),
            self.padding_B11T,
            self.prefix[number] if self.prefix else None,
        )
        return layer.out(out_BGMK.reshape(rows, -1))

    def keep(self, rows: Tensor) -> None:
        self.cache = [(keys[rows], values[rows]) for keys, values in self.cache]
        self.next_B = self.next_B[rows]
        if self.padding_B11T is not None:
            self.padding_B11T = _if_any(self.padding_B11T[rows])


def _if_any(padding: Tensor) -> Tensor | None:
    return padding if padding.any() else None


def _grown(cache_BGTK: Tensor) -> Tensor:
    rows, groups, _, width = cache_BGTK.shape
    return torch.cat((cache_BGTK, cache_BGTK.new_empty(rows, groups, ROOM, width)), 2)


@torch.no_grad()
def fits(model: LanguageModel) -> bool:
    """Whether `FusedState` gives this model's logits, bit for bit: asked of a step of the model itself."""
    from transformers import DynamicCache

    ids_BT = torch.arange(1, 7, device=model.device)[None] % model.module.config.get_text_config().vocab_size
    try:
        for part in model.decoder.layers:  # most other models end here
            Layer.of(part)
        state = State(model, DynamicCache(config=model.module.config), (), True, ids_BT[:, :0], ids_BT[:, 0] * 0)
        with attention.attending(model.module, attention.PREFIXED):
            state.feed(ids_BT, torch.ones_like(ids_BT))
            fused = FusedState.after(state)
            return torch.equal(fused.step(ids_BT[:, 0]), state.step(ids_BT[:, 0]))
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return False
