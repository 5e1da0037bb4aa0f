"""The functions of a decoder layer of the Llama family, without modules: the same operations on the same numbers, so
logits are equal bit for bit (`fused.step_kernel` asks the model whether they are).

Axes: B rows or tokens, T tokens of the cache, Q new tokens of one row, D width, I inputs, O outputs, R rank, H heads, G
key-value heads, K head width, m queries for each of G. In a step, one row may be a vector: (D,) instead of (B, D).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunewright.model.adapters import LoRALinear
from tunewright.model.attention import prefixed
from tunewright.model.decoding.state import Pair

Function = Callable[[Tensor], Tensor]


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
    def of(cls, part: Any, linear: Callable[[nn.Module], Function]) -> Layer:
        """``linear``: the function of a linear layer."""
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

    def turned(self, x: Tensor, turn: Pair, width: int) -> Tensor:
        """Scaled queries, keys and values of tokens: (B, H + 2G, 2, K / 2). ``turn``: by `turn_of`; ``width``: of a
        head."""
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.head_norms is not None:
            of_q, of_k = self.head_norms
            q, k = (norm(part.view(*part.shape[:-1], -1, width)).flatten(-2) for norm, part in ((of_q, q), (of_k, k)))
        all_BH2k = torch.cat((q, k, v), -1).view(len(turn[0]), -1, 2, width // 2)
        all_BH2k = all_BH2k * turn[0] + all_BH2k.flip(2) * turn[1]
        all_BH2k[:, : q.shape[-1] // width].mul_(self.scaling)
        return all_BH2k

    def attended_chunk(self, all_QH2k: Tensor, cache_2GTK: Tensor, used: int, prefix: Pair | None) -> Tensor:
        """What tokens of one row that follow one another attend to, (Q, H * K), after adding their keys and values to
        its cache, of which ``used`` tokens are filled. ``all_QH2k``: by `turned`; ``prefix``: keys and values
        (G, P, K) before the cache's."""
        _, groups, _, width = cache_2GTK.shape
        count, heads = len(all_QH2k), groups * self.per_group
        cache_2GTK[:, :, used : used + count] = all_QH2k[:, heads:].reshape(count, 2, groups, width).permute(1, 2, 0, 3)
        keys_GTK, values_GTK = cache_2GTK.narrow(2, 0, used + count)
        q_QGRK = all_QH2k[:, :heads].reshape(count, groups, self.per_group, width)
        q_GmK = q_QGRK.transpose(0, 1).reshape(groups, -1, width)
        place_T = torch.arange(used + count, device=all_QH2k.device)
        later_QT = place_T > used + torch.arange(count, device=all_QH2k.device)[:, None]
        hidden_11mT = later_QT.repeat_interleave(self.per_group, 0)[None, None]
        out_GmK = prefixed.over_prefix(q_GmK, keys_GTK, values_GTK, hidden_11mT, prefix)
        return out_GmK.view(groups, count, -1, width).transpose(0, 1).reshape(count, heads * width)


def through(layers: Sequence[Layer], hidden: Tensor, attended: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Hidden states after all layers. ``attended``: the output of a layer's attention, by its number."""
    for number, layer in enumerate(layers):
        hidden = hidden + attended(number, layer.before(hidden))
        x = layer.after(hidden)
        hidden = hidden + layer.down(layer.activation(layer.gate(x)) * layer.up(x))
    return hidden


def turn_of(cos_B1K: Tensor, sin_B1K: Tensor, heads: int, groups: int) -> Pair:
    """Factors (B, H + 2G, 2, K / 2) of queries, keys and values, and of their other halves. Values are not turned."""
    cos, sin = (x.view(*x.shape[:2], 2, -1) for x in (cos_B1K, sin_B1K))
    sin = torch.stack((-sin[:, :, 0], sin[:, :, 1]), 2)
    turned, rest = (-1, heads + groups, -1, -1), (-1, groups, -1, -1)
    return (
        torch.cat((cos.expand(turned), torch.ones_like(cos).expand(rest)), 1),
        torch.cat((sin.expand(turned), torch.zeros_like(sin).expand(rest)), 1),
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
    if not is_plain(base) or getattr(layer, "magnitude", None) is not None:
        return lambda x: torch.as_tensor(layer(x.view(-1, x.shape[-1]))).view(*x.shape[:-1], -1)
    weight, bias = torch.as_tensor(base.weight), None if base.bias is None else torch.as_tensor(base.bias)
    if bias is not None and not (isinstance(layer, LoRALinear) and layer.on):
        return lambda x: torch.addmv(bias, weight, x) if x.ndim == 1 else F.linear(x, weight, bias)
    without_bias: Function = partial(product, weight)
    if isinstance(layer, LoRALinear) and layer.on:
        a_RI, b_OR = (factor.to(weight.dtype) for factor in layer.factors())
        without_bias = updated(without_bias, a_RI, b_OR, layer.scaling)
    return without_bias if bias is None else lambda x: without_bias(x) + bias


def is_plain(layer: object) -> bool:
    """Whether a layer is a dense product and nothing else."""
    return type(layer) is nn.Linear


def product(weight_OI: Tensor, x: Tensor) -> Tensor:
    return torch.mv(weight_OI, x) if x.ndim == 1 else F.linear(x, weight_OI)


def updated(base: Function, a_RI: Tensor, b_OR: Tensor, scaling: float) -> Function:
    """``base`` plus a low-rank update."""
    b_RO = b_OR.T
    exact = abs(math.frexp(scaling)[0]) == 0.5  # multiplying by a power of two commutes with rounding
    a_RI = a_RI * scaling if exact else a_RI

    def function(x: Tensor) -> Tensor:
        y, small = base(x), product(a_RI, x)
        if not exact:
            small.mul_(scaling)
        return y.addmv_(b_OR, small) if x.ndim == 1 else y.addmm_(small, b_RO)

    return function
