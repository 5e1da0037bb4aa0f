"""Semantic search with a local encoder (BERT-like, safetensors).

A text's vector is the normalised mean of its tokens' last hidden states (Reimers & Gurevych 2019, 1908.10084). Axes: N
texts, B texts per batch, T tokens, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunewright.model import model_files
from tunewright.model.arch_probe import quiet

BATCH, TOKENS = 64, 256  # texts; tokens per text


@dataclass(frozen=True)
class EmbeddingIndex:
    """Texts in the given order; the rows of ``vector_ND`` have length 1."""

    texts: tuple[str, ...]
    vector_ND: Tensor
    encode: Callable[[Sequence[str]], Tensor]

    def best(self, query: str, count: int) -> list[int]:
        """The ``count`` texts with the largest cosine to ``query``, best first; ties in the order of the texts."""
        cosine_N = self.vector_ND @ self.encode([query])[0]
        return [int(i) for i in torch.sort(cosine_N, descending=True, stable=True).indices[:count]]


def indexer(folder: str | Path) -> Callable[[Sequence[str]], EmbeddingIndex]:
    """A function that indexes texts with the encoder in ``folder``. Raises MODEL_* if that is unsafe or incomplete."""
    encode = encoder(folder)
    return lambda texts: EmbeddingIndex(tuple(texts), encode(texts), encode)


def encoder(folder: str | Path) -> Callable[[Sequence[str]], Tensor]:
    """vector_ND of texts, by the encoder in ``folder``. Raises MODEL_* if that is unsafe or incomplete."""
    from transformers import AutoModel, AutoTokenizer

    model_files.check(Path(folder))
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModel.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
    return functools.partial(embed, model.eval(), tokenizer)


@torch.inference_mode()
def embed(model: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """vector_ND of the texts, each truncated to `TOKENS` tokens."""
    parts = []
    for start in range(0, len(texts), BATCH):
        inputs = tokenizer(
            list(texts[start : start + BATCH]), padding=True, truncation=True, max_length=TOKENS, return_tensors="pt"
        )
        hidden_BTD = model(**inputs).last_hidden_state
        real_BT1 = inputs["attention_mask"][..., None].to(hidden_BTD.dtype)
        parts.append(torch.nn.functional.normalize((hidden_BTD * real_BT1).sum(1) / real_BT1.sum(1), dim=-1))
    return torch.cat(parts)
