"""The next token of one row, as its request wants it chosen. Axis: V vocabulary."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tunewright.core.sampling import GREEDY, Sampling
from tunewright.model.decoding.choice import TokenChoice
from tunewright.server.engine.grammar import Matcher


@dataclass(frozen=True)
class Choosing:
    """``sampling``: temperature, seed, and the repetition penalty of the run; the rest as OpenAI's API defines it:
    ``presence`` and ``frequency`` are subtracted from the logits of tokens that the answer has, once and for each time;
    ``bias`` is added, by token; ``top_p``: only the most probable tokens whose probabilities add up to it."""

    sampling: Sampling = GREEDY
    top_p: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()

    @property
    def is_greedy(self) -> bool:
        """Whether the token with the largest logit is chosen, whatever the answer has so far."""
        return self == GREEDY_CHOICE

    def nth(self, index: int) -> Choosing:
        """For the ``index``-th answer to the same prompt: with noise of its own."""
        if index == 0:
            return self
        digest = hashlib.sha256(f"{self.sampling.seed} {index}".encode()).digest()
        return replace(self, sampling=replace(self.sampling, seed=int.from_bytes(digest[:7], "big")))


GREEDY_CHOICE = Choosing()


class RowChoice:
    """Chooses the tokens of one answer. ``matcher``: what the answer must match."""

    def __init__(self, how: Choosing, prompt: Sequence[int], matcher: Matcher | None) -> None:
        self.how, self.matcher = how, matcher
        self._prompt = prompt
        self._seen: Counter[int] = Counter()
        self._choice: TokenChoice | None = None

    @property
    def is_greedy(self) -> bool:
        return self.how.is_greedy and self.matcher is None

    def next(self, logits_V: Tensor) -> int:
        """The token, which becomes a part of the answer."""
        wide_V = logits_V.float().clone()
        for token, value in self.how.bias:
            wide_V[token] += value
        if self._seen and (self.how.presence or self.how.frequency):
            tokens = torch.tensor(list(self._seen))
            counts = torch.tensor(list(self._seen.values()), dtype=wide_V.dtype)
            wide_V[tokens] -= self.how.presence + self.how.frequency * counts
        if self.matcher is not None:
            wide_V.masked_fill_(~self.matcher.allowed(len(wide_V)), float("-inf"))
        if self._choice is None:
            self._choice = TokenChoice.of(self.how.sampling, [self._prompt], wide_V[None])
        token = int(self._choice.next(wide_V[None], self._nucleus))
        self._seen[token] += 1
        if self.matcher is not None:
            self.matcher.accept(token)
        return token

    def _nucleus(self, logits_BV: Tensor) -> Tensor:
        """Holtzman et al. 2020, 1904.09751: without the tokens that are not among the most probable ones whose
        probabilities first add up to ``top_p``."""
        top_p, temperature = self.how.top_p, self.how.sampling.temperature
        if top_p >= 1 or not temperature:
            return logits_BV
        prob_BV, order_BV = (logits_BV / temperature).softmax(-1).sort(descending=True)
        before_BV = prob_BV.cumsum(-1) - prob_BV
        return logits_BV.index_fill(-1, order_BV[before_BV >= top_p], float("-inf"))


@dataclass(frozen=True)
class TokenLogprob:
    """log p of a token in nats, by the model as it is: before temperature, penalties and grammar. ``top``: the most
    probable tokens at its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def logprob_of(logits_V: Tensor, token: int, count: int) -> TokenLogprob:
    """``count``: of the most probable tokens."""
    logp_V = logits_V.float().log_softmax(-1)
    best = logp_V.topk(count) if count else None
    top = zip(best.indices.tolist(), best.values.tolist(), strict=True) if best else ()
    return TokenLogprob(token, float(logp_V[token]), tuple(top))
