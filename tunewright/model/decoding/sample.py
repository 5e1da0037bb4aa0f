"""Several samples of the answer to each prompt, drawn so that no draw depends on what else is drawn.

The noise of a token is a function of (seed, step, row, sample) and its place alone, so in float32 a sample is the same
in any batch. Axes: B rows of a batch, one for each sample; T tokens; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tunewright.model.decoding.generate import Decoding, after_prompts, stepping
from tunewright.model.decoding.threads import StepThreads
from tunewright.model.language_model import LanguageModel
from tunewright.system import crowding


@dataclass(frozen=True)
class Draw:
    """What noise is a function of, besides row, sample and place; and the temperature of the predictions."""

    seed: int
    step: int
    temperature: float = 1.0


@dataclass(frozen=True)
class Sample:
    """``ids``: the answer's tokens, with the stop token that ended it, if one did (``finish``). ``logp``: of each, at
    the temperature of the draw."""

    ids: tuple[int, ...]
    logp: tuple[float, ...]
    finish: Literal["stop", "length"]


@torch.no_grad()
def sample(
    model: LanguageModel,
    prompts: Sequence[tuple[int, Sequence[int]]],
    count: int,
    decoding: Decoding,
    draw: Draw,
    progress: Callable[[int], None] = lambda _: None,
) -> list[list[Sample]]:
    """``count`` samples for each of ``prompts``, (row, tokens), which is computed once for them. ``progress(n)`` is
    called as n samples finish."""
    done: list[list[Sample | None]] = [[None] * count for _ in prompts]
    threads = StepThreads(crowding.now(torch.get_num_threads()))
    for places, numbers in _batches(prompts, count, decoding):
        alive = [(p, n) for p in places for n in numbers]
        noise_BT = np.stack([_noise(draw, prompts[p][0], n, decoding.max_new_tokens) for p, n in alive])
        written: dict[tuple[int, int], tuple[list[int], list[float]]] = {key: ([], []) for key in alive}
        prompted = [prompts[p][1] for p in places]
        state, logits_BV = after_prompts(model, prompted, decoding, copies=len(numbers))
        with stepping(model, state), crowding.restored():
            for t in range(decoding.max_new_tokens):
                token_B, logp_B = _drawn(logits_BV, noise_BT[:, t], draw.temperature)
                unfinished = []
                for b, (token, logp) in enumerate(zip(token_B.tolist(), logp_B.tolist(), strict=True)):
                    ids, logps = written[alive[b]]
                    ids.append(token)
                    logps.append(logp)
                    if token not in decoding.stop:
                        unfinished.append(b)
                progress(len(alive) - len(unfinished))
                if not unfinished or t + 1 == decoding.max_new_tokens:
                    break
                if len(unfinished) < len(alive):
                    order = state.keep(torch.tensor(unfinished, device=token_B.device))
                    kept = order.tolist()
                    alive, noise_BT, token_B = [alive[b] for b in kept], noise_BT[kept], token_B[order]
                logits_BV = threads.step(state, token_B)
        for (p, n), (ids, logps) in written.items():
            done[p][n] = Sample(tuple(ids), tuple(logps), "stop" if ids[-1] in decoding.stop else "length")
    return [[s for s in group if s is not None] for group in done]


def _batches(
    prompts: Sequence[tuple[int, Sequence[int]]], count: int, decoding: Decoding
) -> Iterator[tuple[list[int], list[int]]]:
    """Prompts, by place, and the numbers of their samples: a function of the arguments alone, because the last bits of
    logits depend on the batch. Prompts of similar length are together, the longest first."""
    if not decoding.batchable:
        yield from (([p], [n]) for p in range(len(prompts)) for n in range(count))
        return
    ordered = sorted(range(len(prompts)), key=lambda p: (-len(prompts[p][1]), p))
    numbers, start = list(range(count)), 0
    while start < len(ordered):
        own = len(prompts[ordered[start]][1]) + decoding.max_new_tokens  # of each row: prompts are padded
        rows = max(1, min(decoding.batch_size, decoding.batch_tokens // own))
        places = ordered[start : start + max(1, rows // count)]
        yield from ((places, numbers[first : first + rows]) for first in range(0, count, rows))
        start += len(places)


def _noise(draw: Draw, row: int, number: int, length: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """One number from 0 to 1 for each token of a sample."""
    return np.random.Generator(np.random.Philox(key=[draw.seed, draw.step], counter=[0, 0, row, number])).random(length)


def _drawn(
    logits_BV: Tensor, noise_B: np.ndarray[tuple[int], np.dtype[np.float64]], temperature: float
) -> tuple[Tensor, Tensor]:
    """(token_B, logp_B): the token at which the summed probabilities pass the noise, and its log-probability."""
    logp_BV = (logits_BV.float() / temperature).log_softmax(-1)
    sums_BV = logp_BV.exp().cumsum(-1, dtype=torch.float64)
    place_B1 = torch.from_numpy(noise_B).to(sums_BV.device)[:, None] * sums_BV[:, -1:]
    token_B1 = torch.searchsorted(sums_BV, place_B1, right=True).clamp_(max=sums_BV.shape[1] - 1)
    return token_B1[:, 0], logp_BV.gather(1, token_B1)[:, 0]
