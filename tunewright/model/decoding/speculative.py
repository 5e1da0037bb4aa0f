"""The answer to one prompt, several tokens a step where `Drafts` guesses them right.

The tokens are those of one token a step: a guess is accepted if it is the most probable token by a margin that is far
larger than the rounding by which several tokens a step differ from one; where the margin is smaller, the step is taken
for that token alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunewright.core.sampling import GREEDY, Sampling
from tunewright.model.decoding.drafts import Drafts
from tunewright.model.decoding.fused import FusedState
from tunewright.model.decoding.state import State

MOST = 8  # guessed tokens a step
MARGIN = 1e-2  # between the two most probable tokens' logits; rounding in float32 changes a logit by about 1e-5


@dataclass(frozen=True)
class Limits:
    """When an answer ends."""

    max_new_tokens: int
    stop: tuple[int, ...]


def applies(state: State | FusedState, sampling: Sampling) -> bool:
    """Whether `complete` can answer. In 16 bits, rounding is too large for any margin."""
    alone = isinstance(state, FusedState) and state.is_plain_row
    return alone and sampling == GREEDY and state.model.head_VD.dtype == torch.float32


def complete(state: FusedState, logits_V: Tensor, prompt: Sequence[int], drafts: Drafts, limits: Limits) -> list[int]:
    """The tokens of the answer. ``state``: after the prompt; ``logits_V``: of the first token."""
    tokens, device = list(prompt), logits_V.device
    end = len(prompt) + limits.max_new_tokens
    token = int(logits_V.argmax())
    while token not in limits.stop:
        tokens.append(token)
        if len(tokens) == end:
            break
        guessed = drafts.guess(tokens, prompt, min(MOST, end - len(tokens) - 1))
        if not guessed:
            token = int(state.step(torch.tensor([token], device=device)).argmax())
            continue
        logits_QV = state.extend(torch.tensor([token, *guessed], device=device))
        best_Q2 = logits_QV.topk(2, -1)
        sure = (best_Q2.values[:, 0] - best_Q2.values[:, 1] > MARGIN).tolist()
        best = best_Q2.indices[:, 0].tolist()
        confirmed = [s and b == g and g not in limits.stop for s, b, g in zip(sure, best, guessed, strict=False)]
        right = (*confirmed, False).index(False)
        tokens += guessed[:right]
        if sure[right]:
            state.rewind(len(guessed) - right)
            token = best[right]
        else:  # the last token that is certain, alone
            state.rewind(len(guessed) - right + 1)
            token = int(state.step(torch.tensor([tokens[-1]], device=device)).argmax())
    return tokens[len(prompt) :]
