"""How far the trained weights have moved what the model says: KL to the base and likelihood of text, base = adapter
off.

No second model is loaded. Axes: R rows, S scales, N predicted tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tunewright.model import adapters, forward
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.packing import Batch, Layout, microbatches, singles, to_batch
from tunewright.tokens.sequences import Rendered

Floats = NDArray[np.float64]
TOKENS, CHUNK = 2048, 64


@dataclass(frozen=True)
class Divergence:
    """Sums over each row's predicted tokens, in nats: KL(base || tuned at a scale), and what each finds the text to
    cost."""

    kl_SR: NDArray[np.float64]
    nats_SR: NDArray[np.float64]
    base_nats_R: NDArray[np.float64]
    tokens_R: NDArray[np.int64]


@torch.inference_mode()
def measure(
    model: LanguageModel,
    rows: Sequence[Rendered],
    scales: Sequence[float],
    layout: Layout,
    watch: Callable[[int], None] = lambda _: None,
    base: LanguageModel | None = None,
) -> Divergence:
    """Both models read the same tokens; the KL is exact, over the whole vocabulary. ``base``: another copy, where
    training changed all weights and there is no adapter to switch off."""
    kl_SR, nats_SR = np.zeros((len(scales), len(rows))), np.zeros((len(scales), len(rows)))
    base_R, tokens_R = np.zeros(len(rows)), np.array([r.supervised for r in rows])
    for group in microbatches(singles([r.ids for r in rows]), TOKENS, layout):
        part = [rows[i] for i in group]
        batch = to_batch(part, layout)
        cuts = np.cumsum([r.supervised for r in part])[:-1]
        with adapters.off(model.module):
            before = _Outputs.of(model if base is None else base, batch)
        for s, scale in enumerate(scales):
            with adapters.scaled(model.module, scale) if base is None else nullcontext():
                after = _Outputs.of(model, batch)
            kl_N, nats_N, base_N = _compared(before, after, torch.from_numpy(batch.target_N))
            for into, values_N in ((kl_SR[s], kl_N), (nats_SR[s], nats_N), (base_R, base_N)):
                into[group] = [float(x.sum()) for x in np.split(values_N[batch.which_M], cuts)]
        watch(len(group))
    return Divergence(kl_SR, nats_SR, base_R, tokens_R)


@dataclass(frozen=True)
class _Outputs:
    """What a model says at the predicted tokens: hidden states and a head, or logits where the head is more than a
    product."""

    states_ND: torch.Tensor
    head_VD: torch.Tensor | None

    @classmethod
    def of(cls, model: LanguageModel, batch: Batch) -> _Outputs:
        if forward.frozen_head(model):
            return cls(forward.hidden(model, batch), model.head_VD)
        return cls(forward.logits(model, batch), None)

    def logits(self, part: slice) -> torch.Tensor:
        states_nD = self.states_ND[part]
        return (states_nD if self.head_VD is None else states_nD @ self.head_VD.T).float()


def _compared(before: _Outputs, after: _Outputs, target_N: torch.Tensor) -> tuple[Floats, Floats, Floats]:
    """(KL, nats of after, nats of before) at every token, in chunks that stay in the processor's cache."""
    found = np.zeros((3, len(target_N)))
    for start in range(0, len(target_N), CHUNK):
        part = slice(start, start + CHUNK)
        z_nV, y_nV = before.logits(part), after.logits(part)
        at_n1 = target_N[part, None].to(z_nV.device)
        z_n1, y_n1 = z_nV.logsumexp(1, keepdim=True), y_nV.logsumexp(1, keepdim=True)
        found[1, part] = (y_n1 - y_nV.gather(1, at_n1))[:, 0].double().cpu().numpy()
        found[2, part] = (z_n1 - z_nV.gather(1, at_n1))[:, 0].double().cpu().numpy()
        share_nV = (z_nV - z_n1).exp_()
        gap_nV = z_nV.sub_(z_n1).sub_(y_nV.sub_(y_n1))
        found[0, part] = (share_nV * gap_nV).sum(1).clamp(min=0).double().cpu().numpy()
    return found[0], found[1], found[2]
