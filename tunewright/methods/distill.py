"""Learning from a teacher's shares: the K likeliest tokens at every place, written down before training starts.

The teacher has spoken once, before the loop; no second model speaks in the middle of a step. A gold answer is a teacher that is
sure, so rows of both kinds mix in one step; a row's weights say how much it counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunewright.core.config import Plan
from tunewright.model import forward, losses
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.packing import Batch, Floats, microbatches, to_batch
from tunewright.tokens.prefix_tree import Ints
from tunewright.tokens.rendering import Rendered

K = 32
TOKENS = 1024


@dataclass(frozen=True)
class DistillRow(Rendered):
    """``soft_NK``: the teacher's likeliest tokens at each supervised place, ``share_NK`` their shares (they sum to 1). ``gold``:
    the teacher is the row's own answer."""

    soft_NK: Ints
    share_NK: Floats
    gold: bool = False


@dataclass(frozen=True)
class SoftBatch(Batch):
    soft_NK: Ints
    share_NK: Floats


def gold(row: Rendered) -> DistillRow:
    """A row whose teacher is its own answer."""
    said = [i for i, w in zip(row.ids[1:], row.weights[1:], strict=True) if w]
    soft_NK, share_NK = np.zeros((len(said), K), np.int64), np.zeros((len(said), K), np.float32)
    soft_NK[:, 0], share_NK[:, 0] = said, 1.0
    return DistillRow(row.ids, row.weights, row.row, soft_NK, share_NK, True)


@torch.inference_mode()
def with_teacher(
    teacher: LanguageModel,
    heard: Sequence[Rendered],
    learned: Sequence[Rendered],
    layout: Any,
    weight: float = 1.0,
    watch: Callable[[int], None] = lambda _: None,
) -> list[DistillRow]:
    """Rows ``learned`` with what the teacher thinks at the same places of ``heard``: the same answers, perhaps after another
    prompt. Rows must have equally many supervised tokens, the same ones."""
    found: list[DistillRow | None] = [None] * len(heard)
    for group in microbatches(range(len(heard)), [r.ids for r in heard], TOKENS, layout):
        part = [heard[i] for i in group]
        batch = to_batch(part, layout)
        share_NV = forward.logits(teacher, batch).float().softmax(-1)
        top = share_NV.topk(min(K, share_NV.shape[1]), -1)
        soft_NK, share_NK = top.indices.cpu().numpy(), (top.values / top.values.sum(1, keepdim=True)).cpu().numpy()
        cuts = np.cumsum([r.supervised for r in part])[:-1]
        for i, at in zip(group, np.split(batch.which_M, cuts), strict=True):
            row = learned[i]
            assert row.supervised == heard[i].supervised, "teacher and student answer alike"
            found[i] = DistillRow(
                row.ids, tuple(w * weight for w in row.weights), row.row, soft_NK[at], share_NK[at].astype(np.float32)
            )
        watch(len(group))
    return [row for row in found if row is not None]


def batches(rendered: Sequence[Rendered], rows: Sequence[int], plan: Plan) -> list[Batch]:
    """Passes of gold rows and of taught ones. Equal predictions are one there, and then so are their teachers: among taught rows
    because one past has one teacher, among gold ones because the target is the teacher."""
    made: list[Batch] = []
    for kind in (True, False):
        mine = [i for i in rows if isinstance(r := rendered[i], DistillRow) and r.gold is kind]
        for group in microbatches(mine, [r.ids for r in rendered], plan.tokens_per_pass, plan.layout):
            part = [r for i in group if isinstance(r := rendered[i], DistillRow)]
            batch = to_batch(part, plan.layout)
            first_N = np.unique(batch.which_M, return_index=True)[1]
            soft_NK = np.concatenate([r.soft_NK for r in part])[first_N]
            share_NK = np.concatenate([r.share_NK for r in part])[first_N]
            made.append(SoftBatch(**vars(batch), soft_NK=soft_NK, share_NK=share_NK))
    return made


def loss(model: LanguageModel, batch: Batch, plan: Plan) -> tuple[Tensor, float]:
    assert isinstance(batch, SoftBatch)
    device = model.device
    weight_N = torch.from_numpy(batch.weight_N).to(device)
    soft_NK, share_NK = torch.from_numpy(batch.soft_NK).to(device), torch.from_numpy(batch.share_NK).to(device)
    if forward.frozen_head(model):
        logits_NV = forward.hidden(model, batch, plan.gradient_checkpointing) @ model.head_VD.T
    else:
        logits_NV = forward.logits(model, batch, plan.gradient_checkpointing)
    return losses.soft_cross_entropy(logits_NV, soft_NK, share_NK, weight_N), float(batch.weight_N.sum())
