"""Several adapters on one base in one forward pass, each with its own tokens.

What no adapter changes (norms, rotations, gates) is computed for all tokens together, and each adapted projection and
attention for each adapter's own tokens, as in a pass of its own: on a CPU, not one bit differs from it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TypeVar

import torch
from torch import Tensor, nn

from tunewright.core.config import Recompute
from tunewright.model import forward, fused_llama
from tunewright.model.adapters import LoRALinear
from tunewright.model.attention.tree import Attend
from tunewright.model.fused_llama import Joint, LayerKernels, Tokens
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.packing import Microbatch

M = TypeVar("M", bound=nn.Module)
Lengths = tuple[int, ...]


def on_one_base(module: M, count: int) -> list[M]:
    """Copies of a module without an adapter that have its tensors in common; each can have its own adapter."""
    tensors = (*module.parameters(), *module.buffers())
    return [copy.deepcopy(module, {id(t): t for t in tensors}) for _ in range(count)]


def hidden(models: Sequence[LanguageModel], microbatches: Sequence[Microbatch], recompute: Recompute) -> list[Tensor]:
    """hidden_ND of each flat microbatch by the model of its own, as `forward.hidden` gives them. The models' kernels
    are fused, and all have the same base."""
    passes = [forward.fused_pass(m, b, recompute) for m, b in zip(models, microbatches, strict=True)]
    lengths_T, lengths_N = tuple(len(t.ids_T) for t, _ in passes), tuple(len(t.at_N) for t, _ in passes)
    starts = torch.tensor([0, *lengths_T[:-1]]).cumsum(0).tolist()
    tokens = Tokens(
        torch.cat([t.ids_T for t, _ in passes]),
        torch.cat([t.positions_T for t, _ in passes]),
        torch.cat([t.at_N + start for (t, _), start in zip(passes, starts, strict=True)]),
    )
    first = models[0].decoder
    *body, last = zip(*(m.decoder.layers for m in models), strict=True)
    layers = [*(_joint(parts, lengths_T, lengths_T) for parts in body), _joint(last, lengths_T, lengths_N)]
    decoder = SimpleNamespace(
        embed_tokens=first.embed_tokens, rotary_emb=first.rotary_emb, layers=layers, norm=first.norm
    )
    how = LayerKernels(_attend([how.attend for _, how in passes], lengths_T))
    return list(torch.split(fused_llama.hidden(decoder, tokens, how, recompute), list(lengths_N)))


def _joint(parts: Sequence[nn.Module], before: Lengths, after: Lengths) -> SimpleNamespace:
    """One layer of all models, as `fused_llama.layer` reads it. ``before``, ``after``: tokens of each model before and
    after the attention; only those that predict leave the last layer."""

    def group(name: str) -> SimpleNamespace:
        modules = [getattr(part, name) for part in parts]
        own = {k: v for k, v in vars(modules[0]).items() if not k.startswith("_")}
        for child, layer in modules[0].named_children():
            lengths = before if child in ("q_proj", "k_proj", "v_proj") else after
            adapted = isinstance(layer, LoRALinear)
            own[child] = Joint(tuple(getattr(m, child) for m in modules), lengths) if adapted else layer
        return SimpleNamespace(**own)

    norms = {name: getattr(parts[0], name) for name in ("input_layernorm", "post_attention_layernorm")}
    return SimpleNamespace(self_attn=group("self_attn"), mlp=group("mlp"), **norms)


def _attend(each: Sequence[Attend], lengths_T: Sequence[int]) -> Attend:
    def attended(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        parts = zip(*(torch.split(x, list(lengths_T), 2) for x in (query, key, value)), strict=True)
        return torch.cat([attend(module, *own) for attend, own in zip(each, parts, strict=True)], 1)

    return attended
