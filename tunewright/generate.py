"""Greedy decoding and label scoring in batches, with the prompts' common beginning computed once.

Finished rows leave the batch. In float32 the results equal those of one row at a time (a test holds it); architectures
whose state cannot be batched exactly (`Facts.packable` is false) are decoded one by one. Axes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHARE_FROM = 8


@dataclass(frozen=True)
class How:
    """Decoding, the same for every arm. ``exact_batch``: rows may share a batch; ``window``: the model's sliding window."""

    max_new_tokens: int
    stop: tuple[int, ...]
    batch: int = 32
    exact_batch: bool = True
    window: int | None = None


def stop_ids(model: Any, eos: int) -> tuple[int, ...]:
    """The tokenizer's end token and those of the model's generation config: the only part of that config that is used."""
    extra = getattr(model.generation_config, "eos_token_id", None)
    return tuple(sorted({eos, *(extra if isinstance(extra, list) else [extra] if isinstance(extra, int) else [])}))


@torch.inference_mode()
def greedy(model: Any, prompts: Sequence[Sequence[int]], how: How, watch: Callable[[int], None] = lambda _: None) -> list[list[int]]:
    """The likeliest next token, again and again, until a stop token (which is not returned) or the limit.

    ``watch`` is called with the number of rows that have just been finished. An answer of ``max_new_tokens`` tokens was cut.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    for rows in _batches(prompts, how):
        cache, logits_BV, mask_BT, position_B = _prefill(model, [prompts[r] for r in rows], how)
        alive = list(rows)
        for _ in range(how.max_new_tokens):
            token_B = logits_BV.argmax(-1)
            going = []
            for b, token in enumerate(token_B.tolist()):
                if token not in how.stop:
                    answers[alive[b]].append(token)
                    if len(answers[alive[b]]) < how.max_new_tokens:
                        going.append(b)
            if len(going) < len(alive):
                watch(len(alive) - len(going))
                if not going:
                    break
                keep = torch.tensor(going, device=token_B.device)
                cache.batch_select_indices(keep)
                alive = [alive[b] for b in going]
                token_B, mask_BT, position_B = token_B[keep], mask_BT[keep], position_B[keep]
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(alive), 1)], 1)
            logits_BV = model(token_B[:, None], attention_mask=mask_BT, position_ids=position_B[:, None], past_key_values=cache, use_cache=True).logits[:, -1]
            position_B = position_B + 1
    return answers


@torch.inference_mode()
def label_logprobs(model: Any, prompts: Sequence[Sequence[int]], labels: Sequence[Sequence[Sequence[int]]], how: How, watch: Callable[[int], None] = lambda _: None) -> NDArray[np.float64]:
    """log p(whole label sequence, end of turn included | prompt) in nats; (rows, labels).

    ``labels[r][j]`` are the token ids of label j after prompt r. Because every sequence holds its own end, the labels are
    events of one space and their summed log-probabilities compare fairly whatever their lengths.
    """
    count = len(labels[0])
    total = np.zeros((len(prompts), count))
    for rows in _batches(prompts, how):
        cache, logits_BV, mask_BT, position_B = _prefill(model, [prompts[r] for r in rows], how)
        first_BV = logits_BV.float().log_softmax(-1)
        for j in range(count):
            ids = [list(labels[r][j]) for r in rows]
            first = torch.tensor([i[0] for i in ids], device=first_BV.device)
            logp_B = first_BV.gather(1, first[:, None])[:, 0].double()
            fed = max(len(i) for i in ids) - 1
            if fed:
                padded = torch.tensor([i[:-1] + [0] * (fed + 1 - len(i)) for i in ids], device=first.device)
                target = torch.tensor([i[1:] + [0] * (fed + 1 - len(i)) for i in ids], device=first.device)
                real = torch.tensor([[1] * (len(i) - 1) + [0] * (fed + 1 - len(i)) for i in ids], device=first.device)
                spare = copy.deepcopy(cache)
                at = position_B[:, None] + torch.arange(fed, device=first.device)
                logits = model(padded, attention_mask=torch.cat([mask_BT, real], 1), position_ids=at, past_key_values=spare, use_cache=True).logits
                logp_BT = logits.float().log_softmax(-1).gather(2, target[:, :, None])[:, :, 0].double()
                logp_B = logp_B + (logp_BT * real).sum(1)
            total[rows, j] = logp_B.cpu().numpy()
        watch(len(rows))
    return total


def _batches(prompts: Sequence[Sequence[int]], how: How) -> list[list[int]]:
    """Rows of similar length together, longest first (what does not fit in memory fails at once)."""
    order = sorted(range(len(prompts)), key=lambda r: (-len(prompts[r]), r))
    size = how.batch if how.exact_batch else 1
    return [order[i : i + size] for i in range(0, len(order), size)]


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, leaving each at least one of its own."""
    first, last = min(prompts), max(prompts)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return min(same, min(len(p) for p in prompts) - 1)


def _prefill(model: Any, prompts: list[Sequence[int]], how: How) -> tuple[Any, Tensor, Tensor, Tensor]:
    """(cache, logits_BV after each prompt, mask_BT of the cache, next position_B).

    Layout of the cache: shared prefix, then each row's own tokens padded on the left. A sliding window counts cache places
    and would count the padding between, so models with one share nothing once a prompt is longer than the window.
    """
    from transformers import DynamicCache

    device = next(model.parameters()).device
    cache = DynamicCache(config=model.config)
    shared = common_prefix(prompts) if len(prompts) > 1 else 0
    longest = max(len(p) for p in prompts)
    if shared < SHARE_FROM or (how.window is not None and longest + how.max_new_tokens > how.window):
        shared = 0
    if shared:
        model(torch.tensor([prompts[0][:shared]], device=device), past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(len(prompts))
    width = longest - shared
    own = [list(p[shared:]) for p in prompts]
    ids = torch.tensor([[0] * (width - len(o)) + o for o in own], device=device)
    real = torch.tensor([[0] * (width - len(o)) + [1] * len(o) for o in own], device=device)
    mask = torch.cat([real.new_ones(len(own), shared), real], 1)
    positions = shared + (real.cumsum(1) - 1).clamp(min=0)
    logits = model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
    return cache, logits, mask, positions[:, -1] + 1
