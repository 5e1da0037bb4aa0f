"""What a consumer answered, what our own model computes for the same tokens, and how far the two differ. Log
probabilities are in nats. Axes: T tokens of an answer, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SMALLEST = 2.0**-24  # the part of a float32 sum that is its last bit, rounded


@dataclass(frozen=True)
class Answered:
    """A consumer's greedy answer to one prompt. ``ended``: by the consumer, before the limit. ``prompt_tokens``: as it
    counts them. ``regret``: how much more probable its own likeliest token was than a token that it gave, at most."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    ended: bool = False
    prompt_tokens: int | None = None
    regret: float = 0.0


@dataclass(frozen=True)
class Expected:
    """A model's log probability of each token of an answer, and how much more probable its likeliest token is. One more
    regret if the consumer ended without a stop token: that of ending there. ``lost``: how much larger the log
    probability is if the sum over the vocabulary is made in float32, and loses what is smaller than its last bit, as
    llama-server's does (0.001 with 150,000 tokens)."""

    logprobs: tuple[float, ...]
    regrets: tuple[float, ...]
    lost: tuple[float, ...]


@dataclass(frozen=True)
class Difference:
    """Between the consumer and a model. ``by_prompt``: the largest difference of a log probability in each answer;
    ``regret``: the model's largest; ``same_texts``: answers that are the model's own greedy ones; ``likeliest``: the
    fraction of tokens that the model finds likeliest too."""

    tokens: int
    by_prompt: tuple[float, ...]
    regret: float
    same_texts: int
    likeliest: float

    @property
    def largest(self) -> float:
        return float(np.max(self.by_prompt))

    def within(self, allowed: float) -> bool:
        """Whether no log probability differs by more than ``allowed``, and other tokens were chosen only where two were
        closer than such differences."""
        return self.largest <= allowed and self.regret <= 2 * allowed


def compare(answers: Sequence[Answered], expected: Sequence[Expected]) -> Difference:
    regrets = np.concatenate([e.regrets for e in expected])
    apart = [_apart(a, e) for a, e in zip(answers, expected, strict=True)]
    return Difference(
        tokens=sum(len(a.ids) for a in answers),
        by_prompt=tuple(float(np.abs(x_T).max(initial=0.0)) for x_T in apart),
        regret=float(regrets.max(initial=0.0)),
        same_texts=sum(not any(e.regrets) for e in expected),
        likeliest=float(np.mean(regrets == 0)) if len(regrets) else 0.0,
    )


def _apart(answer: Answered, expected: Expected) -> NDArray[np.float64]:
    """How far each log probability is from the model's, exact or with the loss of a sum in float32."""
    exact_T = np.asarray(answer.logprobs, np.float64) - np.asarray(expected.logprobs, np.float64)
    beyond_T: NDArray[np.float64] = exact_T - exact_T.clip(0, np.asarray(expected.lost, np.float64))
    return beyond_T


def known(answer: Answered, vocabulary: int) -> Answered:
    """The answer up to the first token that the model does not have."""
    count = next((t for t, i in enumerate(answer.ids) if i >= vocabulary), len(answer.ids))
    return replace(answer, ids=answer.ids[:count], logprobs=answer.logprobs[:count])


def expect(module: PreTrainedModel, prompt: Sequence[int], answer: Answered, stop: Sequence[int]) -> Expected:
    """What the model says of an answer, in one forward pass."""
    import torch

    ids = torch.tensor([[*prompt, *answer.ids]], device=module.device)
    with torch.inference_mode():
        logits_TV = module(ids, use_cache=False, logits_to_keep=len(answer.ids) + 1).logits[0]
        logp_TV = logits_TV.double().log_softmax(-1)  # a sum in float32 loses such parts here too, by processor
        best_T = logp_TV.max(-1).values.tolist()
        own_T = logp_TV[:-1].gather(1, ids[0, len(prompt) :, None])[:, 0].tolist()
        ending = logp_TV[-1, list(stop)].max().item()
        p_TV = logp_TV[:-1].exp()
        lost_T = (-torch.log1p(-p_TV.where(p_TV < SMALLEST, 0).sum(-1))).tolist()
    regrets = [best - own for best, own in zip(best_T, own_T, strict=False)]
    if answer.ended and not (answer.ids and answer.ids[-1] in stop):
        regrets.append(best_T[-1] - ending)
    return Expected(tuple(own_T), tuple(regrets), tuple(lost_T))
