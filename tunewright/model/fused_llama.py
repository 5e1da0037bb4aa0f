"""The decoder of the Llama family, fused for LoRA training: few passes over memory, few saved tensors, and the last
layer only where a token is predicted.

A third of a CPU step of transformers' modules is elementwise passes. Here each norm, rotation and gate is one function
with its own backward, and projections that read the same input share one product with their stacked A. `fits` tells
whether a model has this form, by comparing numbers, not names; other models run transformers' own modules.

Axes: T tokens, N tokens that predict, D width, I inputs, O outputs, R rank (of all projections of a group), H heads, K
head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tunewright.core.config import AdapterConfig, Recompute
from tunewright.core.errors import ModelError
from tunewright.model.adapters import LoRALinear, attach, trainable
from tunewright.model.attention import tree
from tunewright.model.attention.interface import TREE, attending
from tunewright.model.attention.tree import Attend
from tunewright.model.frozen.packed import Linear, weight_of
from tunewright.tokens.prefix_tree import build


def layer(
    part: Any, hidden_TD: Tensor, turn: tuple[Tensor, Tensor], attend: Attend, at_N: Tensor | None = None
) -> Tensor:
    """One decoder layer, (T, D) -> (T, D); or, with ``at_N``, (N, D) of those tokens alone: the others are only
    attended to."""
    own, mlp = part.self_attn, part.mlp
    x_TD = rms_norm(part.input_layernorm, hidden_TD)
    q_THK, k_THK, v_THK = (y.view(len(y), -1, own.head_dim) for y in project(x_TD, own.q_proj, own.k_proj, own.v_proj))
    if hasattr(own, "q_norm"):
        q_THK, k_THK = rms_norm(own.q_norm, q_THK), rms_norm(own.k_norm, k_THK)
    q_THK, k_THK = _Rotate.apply(q_THK, *turn), _Rotate.apply(k_THK, *turn)  # type: ignore[no-untyped-call]
    q_1HTK, k_1HTK, v_1HTK = (x_THK.transpose(0, 1)[None] for x_THK in (q_THK, k_THK, v_THK))
    out_TD = attend(own, q_1HTK, k_1HTK, v_1HTK)[0].flatten(1)
    if at_N is not None:
        out_TD, hidden_TD = out_TD[at_N], hidden_TD[at_N]
    hidden_TD = hidden_TD + project(out_TD, own.o_proj)[0]
    gate_TO, up_TO = project(rms_norm(part.post_attention_layernorm, hidden_TD), mlp.gate_proj, mlp.up_proj)
    gated_TO: Tensor = _SwiGLU.apply(gate_TO, up_TO)  # type: ignore[no-untyped-call]
    return hidden_TD + project(gated_TO, mlp.down_proj)[0]


def called_layer(part: nn.Module, *given: object) -> Tensor:
    """`layer` as a call of the module, whose forward it then is: what hooks into a call takes part."""
    out: Tensor = part(*given)
    return out


@dataclass(frozen=True)
class LayerKernels:
    """``attend``: how the tokens of a layer attend; ``layer``: what computes it."""

    attend: Attend
    layer: Callable[..., Tensor] = layer


@dataclass(frozen=True)
class Tokens:
    """Of a flat microbatch. ``at_N``: the places of those that predict."""

    ids_T: Tensor
    positions_T: Tensor
    at_N: Tensor


def hidden(decoder: Any, tokens: Tokens, how: LayerKernels, recompute: Recompute = "none") -> Tensor:
    """hidden_ND, after the last norm, of the tokens that predict. ``recompute``: with "layers", the backward pass
    computes again all but each layer's input."""
    hidden_TD = decoder.embed_tokens(tokens.ids_T)
    cos_1TK, sin_1TK = decoder.rotary_emb(hidden_TD[None], tokens.positions_T[None])
    turn = cos_1TK[0, :, None], sin_1TK[0, :, None]
    *body, last = decoder.layers
    for part in body:
        if recompute == "layers" and torch.is_grad_enabled():
            hidden_TD = checkpoint(how.layer, part, hidden_TD, turn, how.attend, use_reentrant=False)
        else:
            hidden_TD = how.layer(part, hidden_TD, turn, how.attend)
    return rms_norm(decoder.norm, how.layer(last, hidden_TD, turn, how.attend, tokens.at_N))


@functools.cache
def compiled_layer() -> Callable[..., Tensor]:
    """`layer`, compiled for any number of tokens; with FlexAttention inside, each layer is a few kernels."""
    return torch.compile(layer, fullgraph=True, dynamic=True)


def windows(layers: Iterable[nn.Module]) -> set[int | None]:
    """Their sliding windows, in tokens."""
    return {getattr(part.self_attn, "sliding_window", None) for part in layers}


@dataclass(frozen=True)
class Joint:
    """The same layer with several adapters (`model.several`). ``lengths``: rows of its input that belong to each."""

    layers: tuple[LoRALinear, ...]
    lengths: tuple[int, ...]


def project(x_TI: Tensor, *layers: LoRALinear | Joint) -> tuple[Tensor, ...]:
    """The outputs of several adapted layers for the same input."""
    if isinstance(layers[0], Joint):
        joint = cast("tuple[Joint, ...]", layers)
        own_TI = enumerate(torch.split(x_TI, list(joint[0].lengths)))
        parts = [project(x, *(one.layers[k] for one in joint)) for k, x in own_TI]
        return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))
    own = cast("tuple[LoRALinear, ...]", layers)
    if not all(one.on for one in own):
        return tuple(F.linear(x_TI, weight_of(one.base, x_TI.dtype), one.base.bias) for one in own)
    bases, scalings = [one.base for one in own], [one.scaling for one in own]
    factors = [t for one in own for t in one.factors()]
    outputs: tuple[Tensor, ...] = _Project.apply(x_TI, scalings, bases, *factors)  # type: ignore[no-untyped-call]
    return outputs


class _Project(torch.autograd.Function):
    """y = xW' + s(xA')B' + bias for several (W, bias, A, B), W and bias frozen. The products with A, usually one
    after another, are one product with the stacked A; W's product is accumulated onto B's. A packed W is made dense
    here and again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x_TI: Tensor, scalings: list[float], bases: list[Linear], *factors: Tensor
    ) -> tuple[Tensor, ...]:
        downs, ups = factors[0::2], factors[1::2]
        a_RI = torch.cat(downs).to(x_TI.dtype)
        b_OR = [b.to(x_TI.dtype) for b in ups]
        outputs, ranks = [], [len(a) for a in downs]
        small_TR = _scale(x_TI @ a_RI.T, ranks, scalings)
        for base, b, small in zip(bases, b_OR, torch.split(small_TR, ranks, 1), strict=True):
            y = (small @ b.T).addmm_(x_TI, weight_of(base, x_TI.dtype).T)
            outputs.append(y if base.bias is None else y.add_(base.bias))
        ctx.save_for_backward(x_TI, small_TR, a_RI, *b_OR)
        ctx.given = (scalings, bases, ranks, downs[0].dtype)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, small_TR, a_RI, *b_OR = ctx.saved_tensors
        scalings, bases, ranks, dtype = ctx.given
        d_ups = [(g.T @ small).to(dtype) for g, small in zip(grads, torch.split(small_TR, ranks, 1), strict=True)]
        back_TR = _scale(torch.cat([g @ b for g, b in zip(grads, b_OR, strict=True)], 1), ranks, scalings)
        d_downs = torch.split((back_TR.T @ x_TI).to(dtype), ranks)
        dx_TI = None
        if ctx.needs_input_grad[0]:  # not for the first layer: embeddings are frozen
            dx_TI = back_TR @ a_RI
            for g, base in zip(grads, bases, strict=True):
                dx_TI.addmm_(g, weight_of(base, g.dtype))
        return (dx_TI, None, None, *(t for pair in zip(d_downs, d_ups, strict=True) for t in pair))


def _scale(small_TR: Tensor, ranks: list[int], scalings: list[float]) -> Tensor:
    """The columns of each layer times its LoRA scaling factor, in place."""
    if len({*scalings}) == 1:
        return small_TR.mul_(scalings[0])
    for small, scaling in zip(torch.split(small_TR, ranks, 1), scalings, strict=True):
        small.mul_(scaling)
    return small_TR


def rms_norm(norm: Any, x: Tensor) -> Tensor:
    normed: Tensor = _RMSNorm.apply(x, norm.weight, norm.variance_epsilon)  # type: ignore[no-untyped-call]
    return normed


class _RMSNorm(torch.autograd.Function):
    """Root mean square norm (Zhang & Sennrich 2019, 1910.07467) over the last axis, its weight frozen; float32 or
    better inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return F.rms_norm(x, weight.shape, weight, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        g, wide = grads[0].contiguous(), torch.promote_types(x.dtype, torch.float32)
        inverse = torch.rsqrt(
            torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square() / len(weight) + ctx.eps
        )
        # Layer norm's fused backward with a mean of zero is this gradient, except for the mean that it subtracts.
        shape, nought = list(weight.shape), torch.zeros_like(inverse)
        scale = weight.to(wide) if x.device.type == "cpu" else weight  # the dtype that each device's kernel takes
        dx, _, _ = torch.ops.aten.native_layer_norm_backward(
            g, x, shape, nought, inverse, scale, None, [True, False, False]
        )
        # Not g @ weight, whose rounding of a row depends on the number of rows.
        along = (g * weight).sum(-1, keepdim=True, dtype=wide)
        return dx + (along * (inverse / len(weight))).to(x.dtype), None, None


class _Rotate(torch.autograd.Function):
    """Rotary positions (Su et al. 2021, 2104.09864), halves rotated against each other; the backward pass turns
    back."""

    @staticmethod
    def forward(ctx: Any, x_THK: Tensor, cos_T1K: Tensor, sin_T1K: Tensor) -> Tensor:
        ctx.save_for_backward(cos_T1K, sin_T1K)
        return _rotated(x_THK, cos_T1K, sin_T1K, 1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos_T1K, sin_T1K = ctx.saved_tensors
        return _rotated(grads[0], cos_T1K, sin_T1K, -1.0), None, None


def _rotated(x_THK: Tensor, cos_T1K: Tensor, sin_T1K: Tensor, sign: float) -> Tensor:
    half = x_THK.shape[2] // 2
    out = x_THK * cos_T1K
    out[..., :half].addcmul_(x_THK[..., half:], sin_T1K[..., :half], value=-sign)
    out[..., half:].addcmul_(x_THK[..., :half], sin_T1K[..., half:], value=sign)
    return out


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up (Shazeer 2020, 2002.05202); silu is recomputed rather than kept."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grads[0] * up, gate), F.silu(gate).mul_(grads[0])


def applies(model: Any) -> bool:
    """Whether every linear layer of the decoder has plain LoRA (no dropout, no magnitudes), and its layers are all
    alike, so that what was tested on two of them (`fits`) holds for all."""
    layers = model.get_decoder().layers
    linear = [m for part in layers for m in part.modules() if isinstance(m, Linear | LoRALinear)]
    inner = {id(m.base) for m in linear if isinstance(m, LoRALinear)}
    plain = all(m.dropout == 0 and m.magnitude is None if isinstance(m, LoRALinear) else id(m) in inner for m in linear)
    return plain and all(_form(part) == _form(layers[0]) for part in layers)


def _form(part: torch.nn.Module) -> list[Any]:
    """What decides how a layer computes. An adapter's rank and LoRA scaling factor may differ from layer to layer."""
    plain = (int, float, str, bool, type(None))
    return [
        (name, type(m), {k: v for k, v in vars(m).items() if isinstance(v, plain) and k != "layer_idx"})
        if not isinstance(m, LoRALinear)
        else (name, LoRALinear)
        for name, m in part.named_modules()
    ]


def fits(module: Any, tolerance: float = 1e-3) -> bool:
    """Whether this file computes what the model's own modules do: hidden states and adapter gradients of a small
    float32 model of the architecture, which has its adapter on afterwards. Rounding alone moves a gradient by some 1e-4
    of its size on some processors, another formula by a tenth and more."""
    folded = build([list(range(1, 24)), [*range(1, 20), 3, 5, 7]])
    ids_T, positions_T = torch.from_numpy(folded.ids_T), torch.from_numpy(folded.positions_T)
    at_N = torch.arange(3, len(ids_T), 2)
    weigh_ND = torch.randn(
        len(at_N), module.config.get_text_config().hidden_size, generator=torch.Generator().manual_seed(0)
    )
    results = []
    try:
        attach(module, AdapterConfig(rank=2), 0)
        for p in trainable(module).values():
            torch.nn.init.normal_(p, std=0.03, generator=torch.Generator().manual_seed(p.numel()))
        if not applies(module):
            return False
        with attending(module, TREE):
            given = {"position_ids": positions_T[None], "segments": folded.segments, "use_cache": False}
            theirs_ND = module.get_decoder()(ids_T[None], **given).last_hidden_state[0, at_N]
        how = LayerKernels(tree.attend(folded.segments, keep_weights=True))
        ours_ND = hidden(module.get_decoder(), Tokens(ids_T, positions_T, at_N), how)
        for out_ND in (theirs_ND, ours_ND):
            grads = torch.autograd.grad((out_ND * weigh_ND).sum(), list(trainable(module).values()))
            results.append([out_ND.detach(), *grads])
    except (
        AttributeError,
        TypeError,
        ValueError,
        RuntimeError,
        ModelError,
    ):  # of another form: its own modules are used
        return False
    return all(bool((a - b).abs().max() <= tolerance * a.abs().max()) for a, b in zip(*results, strict=True))
