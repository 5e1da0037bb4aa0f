"""The next token of every row. Axes: B rows, V vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tunewright.core.sampling import Sampling


@dataclass
class TokenChoice:
    """``seen_BV``: the tokens that prompt and answer have already, if they are penalised. ``noise``: a generator for
    each row, if tokens are drawn."""

    sampling: Sampling
    seen_BV: Tensor | None = None
    noise: list[np.random.Generator] | None = None

    @classmethod
    def of(cls, sampling: Sampling, prompts: Sequence[Sequence[int]], like_BV: Tensor) -> TokenChoice:
        """For these prompts; ``like_BV``: logits of the first tokens."""
        choice = cls(sampling)
        if sampling.repetition_penalty != 1:
            choice.seen_BV = torch.zeros_like(like_BV, dtype=torch.bool)
            for row, prompt in enumerate(prompts):
                choice.seen_BV[row, torch.tensor(list(prompt), device=like_BV.device)] = True
        if sampling.temperature:
            choice.noise = [np.random.Generator(np.random.Philox(key=_key(sampling.seed, p))) for p in prompts]
        return choice

    def next(self, logits_BV: Tensor, cut: Callable[[Tensor], Tensor] = lambda logits_BV: logits_BV) -> Tensor:
        """token_B. ``cut``: what becomes of the penalised logits before a token is chosen."""
        if self.seen_BV is not None:
            wide_BV, penalty = logits_BV.float(), self.sampling.repetition_penalty
            penalised_BV = torch.where(wide_BV > 0, wide_BV / penalty, wide_BV * penalty)
            logits_BV = torch.where(self.seen_BV, penalised_BV, wide_BV)
        logits_BV = cut(logits_BV)
        if self.noise is not None:
            # The largest of logits / T plus Gumbel noise is a draw from their softmax.
            uniform_BV = np.stack([generator.random(logits_BV.shape[1], np.float32) for generator in self.noise])
            gumbel_BV = -np.log(-np.log(np.clip(uniform_BV, 1e-20, 1 - 1e-7)))
            noise_BV = torch.from_numpy(gumbel_BV).to(logits_BV.device)
            logits_BV = logits_BV.float() / self.sampling.temperature + noise_BV
        token_B = logits_BV.argmax(-1)
        if self.seen_BV is not None:
            self.seen_BV.scatter_(1, token_B[:, None], True)
        return token_B

    def keep(self, rows: Tensor) -> None:
        """Only these rows continue."""
        if self.seen_BV is not None:
            self.seen_BV = self.seen_BV[rows]
        if self.noise is not None:
            self.noise = [self.noise[i] for i in rows.tolist()]


@dataclass
class TokenChoices:
    """Several choices, each for ``sizes`` of the rows, in order."""

    parts: list[TokenChoice]
    sizes: list[int]

    @classmethod
    def of(
        cls, samplings: Sequence[Sampling], prompts: Sequence[Sequence[Sequence[int]]], like_BV: Tensor
    ) -> TokenChoices:
        sizes = [len(part) for part in prompts]
        given = zip(samplings, prompts, torch.split(like_BV, sizes), strict=True)
        return cls([TokenChoice.of(*part) for part in given], sizes)

    def next(self, logits_BV: Tensor) -> Tensor:
        """token_B."""
        given = zip(self.parts, torch.split(logits_BV, self.sizes), strict=True)
        return torch.cat([part.next(logits) for part, logits in given if len(logits)])

    def keep(self, rows: Tensor) -> None:
        """Only these rows continue; those of each part stay together."""
        start = 0
        for n, (part, size) in enumerate(zip(self.parts, self.sizes, strict=True)):
            own = rows[(rows >= start) & (rows < start + size)] - start
            if len(own) < size:
                part.keep(own)
            start, self.sizes[n] = start + size, len(own)


def _key(seed: int, prompt: Sequence[int]) -> int:
    return int.from_bytes(hashlib.sha256(repr((seed, list(prompt))).encode()).digest()[:8], "big")
