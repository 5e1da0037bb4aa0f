"""How far the trained weights have moved what the model says: KL to the base and likelihood of text, base = adapter off.

No second model is loaded. Axes: R rows, S scales, N predicted tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tunewright import adapters, models
from tunewright.packing import Layout, passes, to_batch
from tunewright.rendering import Rendered

TOKENS = 1024


@dataclass(frozen=True)
class Divergence:
    """Sums over each row's predicted tokens, in nats: KL(base || tuned at a scale), and what each finds the text to cost."""

    kl_SR: NDArray[np.float64]
    nats_SR: NDArray[np.float64]
    base_nats_R: NDArray[np.float64]
    tokens_R: NDArray[np.int64]


@torch.inference_mode()
def measure(
    model: Any,
    rows: Sequence[Rendered],
    scales: Sequence[float],
    layout: Layout,
    watch: Callable[[int], None] = lambda _: None,
    base: Any = None,
) -> Divergence:
    """Both models read the same tokens; the KL is exact, over the whole vocabulary. ``base``: another copy, where training
    changed all weights and there is no adapter to switch off."""
    kl_SR, nats_SR = np.zeros((len(scales), len(rows))), np.zeros((len(scales), len(rows)))
    base_R, tokens_R = np.zeros(len(rows)), np.array([r.supervised for r in rows])
    for group in passes(range(len(rows)), [r.ids for r in rows], TOKENS, layout):
        part = [rows[i] for i in group]
        batch = to_batch(part, layout)
        cuts = np.cumsum([r.supervised for r in part])[:-1]
        target_N1 = torch.from_numpy(batch.target_N)[:, None]

        def summed(values_N: torch.Tensor, which: Any = batch.which_M, cuts: Any = cuts) -> list[float]:
            return [float(x.sum()) for x in np.split(values_N.double().cpu().numpy()[which], cuts)]

        with adapters.off(model):
            before_NV = models.forward(model if base is None else base, batch).float().log_softmax(-1)
        target_N1 = target_N1.to(before_NV.device)
        share_NV = before_NV.exp()
        base_R[group] = summed(-before_NV.gather(1, target_N1)[:, 0])
        for s, scale in enumerate(scales):
            with adapters.scaled(model, scale) if base is None else nullcontext():
                after_NV = models.forward(model, batch).float().log_softmax(-1)
            nats_SR[s, group] = summed(-after_NV.gather(1, target_N1)[:, 0])
            kl_SR[s, group] = summed((share_NV * (before_NV - after_NV)).sum(-1).clamp(min=0))
        watch(len(group))
    return Divergence(kl_SR, nats_SR, base_R, tokens_R)
