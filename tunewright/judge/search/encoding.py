"""Vectors of texts, by a model as it is trained: with its prefixes, in its passes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tunewright.judge.chat_model import ChatModel
from tunewright.model.heads import vectors
from tunewright.tokens.packing import singles, split_into_passes, to_microbatch
from tunewright.tokens.sequences import head_sequence
from tunewright.tokens.texts import Kind, text_ids


@torch.inference_mode()
def encode(chat: ChatModel, texts: Sequence[str], kind: Kind) -> NDArray[np.float32]:
    """vector_ND, each of length 1; of texts that are longer than training rows may be, the beginnings."""
    plan, how = chat.plan, vectors.pooling(chat.plan)
    ids = [text_ids(chat.template, text, kind, plan.max_length) for text in texts]
    rows = [vectors.pooled(head_sequence(own, own[-1], i), how) for i, own in enumerate(ids)]
    done: dict[int, NDArray[np.float32]] = {}
    for group in split_into_passes(singles([r.ids for r in rows]), plan.tokens_per_pass, plan.layout):
        microbatch = to_microbatch([rows[i] for i in group], plan.layout)
        done |= zip(group, vectors.of_texts(chat.model, microbatch, how).float().cpu().numpy(), strict=True)
    return np.stack([done[i] for i in range(len(rows))])
