"""How far training moved the model's predictions: KL from the base model, and likelihood of text.

The base is the same model with its adapter off; no second one is loaded. Axes: R rows, S scales, N predicted tokens,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tunewright.model import adapters
from tunewright.model.language_model import LanguageModel
from tunewright.model.likelihood import CHUNK, TOKENS_PER_PASS, Predictions
from tunewright.tokens.packing import Layout, singles, split_into_passes, to_microbatch
from tunewright.tokens.sequences import TokenSequence


@dataclass(frozen=True)
class Divergence:
    """Sums over each row's predicted tokens. In nats: KL(base || tuned) at each scale, and the negative log-likelihood
    of the row under the tuned model at each scale and under the base. ``same_SR``: tokens of which both models find the
    same one likeliest."""

    kl_SR: NDArray[np.float64]
    nats_SR: NDArray[np.float64]
    base_nats_R: NDArray[np.float64]
    same_SR: NDArray[np.float64]
    tokens_R: NDArray[np.int64]


@torch.inference_mode()
def measure(
    model: LanguageModel,
    rows: Sequence[TokenSequence],
    scales: Sequence[float],
    layout: Layout,
    progress: Callable[[int], None] = lambda _: None,
    base: LanguageModel | None = None,
) -> Divergence:
    """The divergence of both models on the same tokens; the KL is exact, over the whole vocabulary.

    ``base``: another copy, if training changed all weights and there is no adapter to switch off. ``progress(n)`` is
    called as rows finish.
    """
    kl_SR, nats_SR, same_SR = np.zeros((3, len(scales), len(rows)))
    base_R, tokens_R = np.zeros(len(rows)), np.array([r.supervised for r in rows])
    for group in split_into_passes(singles([r.ids for r in rows]), TOKENS_PER_PASS, layout):
        part = [rows[i] for i in group]
        microbatch = to_microbatch(part, layout)
        cuts = np.cumsum([r.supervised for r in part])[:-1]
        with adapters.off(model.module):
            before = Predictions.of(model if base is None else base, microbatch)
        for s, scale in enumerate(scales):
            with adapters.scaled(model.module, scale) if base is None else nullcontext():
                after = Predictions.of(model, microbatch)
            c = _compared(before, after, torch.from_numpy(microbatch.target_N))
            sums = ((kl_SR[s], c.kl_N), (nats_SR[s], c.after_N), (base_R, c.before_N), (same_SR[s], c.same_N))
            for into, values_N in sums:
                into[group] = [float(x.sum()) for x in np.split(values_N[microbatch.prediction_M], cuts)]
        progress(len(group))
    return Divergence(kl_SR, nats_SR, base_R, same_SR, tokens_R)


@dataclass(frozen=True)
class _Compared:
    """At every predicted token, in nats: KL, and the negative log-likelihood after and before; whether the likeliest
    token is the same."""

    kl_N: NDArray[np.float64]
    after_N: NDArray[np.float64]
    before_N: NDArray[np.float64]
    same_N: NDArray[np.float64]


def _compared(before: Predictions, after: Predictions, target_N: torch.Tensor) -> _Compared:
    """In chunks that stay in the processor's cache."""
    kl_N, after_N, before_N, same_N = np.zeros((4, len(target_N)))
    for start in range(0, len(target_N), CHUNK):
        part = slice(start, start + CHUNK)
        z_nV, y_nV = before.logits(part), after.logits(part)
        at_n1 = target_N[part, None].to(z_nV.device)
        z_n1, y_n1 = z_nV.logsumexp(1, keepdim=True), y_nV.logsumexp(1, keepdim=True)
        after_N[part] = (y_n1 - y_nV.gather(1, at_n1))[:, 0].double().cpu().numpy()
        before_N[part] = (z_n1 - z_nV.gather(1, at_n1))[:, 0].double().cpu().numpy()
        same_N[part] = (z_nV.argmax(1) == y_nV.argmax(1)).cpu().numpy()
        p_nV = (z_nV - z_n1).exp_()
        gap_nV = z_nV.sub_(z_n1).sub_(y_nV.sub_(y_n1))
        kl_N[part] = (p_nV * gap_nV).sum(1).clamp(min=0).double().cpu().numpy()
    return _Compared(kl_N, after_N, before_N, same_N)
