"""How likely a model finds given tokens, without ever holding all logits.

Axes: R rows, N predicted tokens, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tunewright.model import forward
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.packing import Layout, Microbatch, singles, split_into_passes, to_microbatch
from tunewright.tokens.sequences import TokenSequence

# Tokens of a pass. Not the plan's tokens_per_pass: passes decide the last bits of the reported numbers, which must not
# depend on the memory of the machine.
TOKENS_PER_PASS = 2048
CHUNK = 64  # tokens whose logits stay in the processor's cache


@dataclass(frozen=True)
class Predictions:
    """A model's predictions: hidden states and a head, or logits where the head is more than a product."""

    states_ND: torch.Tensor
    head_VD: torch.Tensor | None

    @classmethod
    def of(cls, model: LanguageModel, microbatch: Microbatch) -> Predictions:
        if forward.frozen_head(model):
            return cls(forward.hidden(model, microbatch), model.head_VD)
        return cls(forward.logits(model, microbatch), None)

    def logits(self, part: slice) -> torch.Tensor:
        """Those of some of the tokens, (n, V), in float32."""
        states_nD = self.states_ND[part]
        return (states_nD if self.head_VD is None else states_nD @ self.head_VD.T).float()


@torch.inference_mode()
def nats(
    model: LanguageModel,
    rows: Sequence[TokenSequence],
    layout: Layout,
    progress: Callable[[int], None] = lambda _: None,
) -> NDArray[np.float64]:
    """nats_R: the negative log-likelihood of the supervised tokens of each row. ``progress(n)`` is called as n rows
    finish."""
    nats_R = np.zeros(len(rows))
    for group in split_into_passes(singles([r.ids for r in rows]), TOKENS_PER_PASS, layout):
        part = [rows[i] for i in group]
        microbatch = to_microbatch(part, layout)
        nats_N = _of_targets(Predictions.of(model, microbatch), torch.from_numpy(microbatch.target_N))
        cuts = np.cumsum([r.supervised for r in part])[:-1]
        nats_R[group] = [float(x.sum()) for x in np.split(nats_N[microbatch.prediction_M], cuts)]
        progress(len(group))
    return nats_R


def _of_targets(predictions: Predictions, target_N: torch.Tensor) -> NDArray[np.float64]:
    nats_N = np.zeros(len(target_N))
    for start in range(0, len(target_N), CHUNK):
        part = slice(start, start + CHUNK)
        logits_nV = predictions.logits(part)
        at_n1 = target_N[part, None].to(logits_nV.device)
        nats_N[part] = (logits_nV.logsumexp(1, keepdim=True) - logits_nV.gather(1, at_n1))[:, 0].double().cpu().numpy()
    return nats_N
