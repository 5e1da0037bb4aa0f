"""The contrastive loss of a step of queries and documents (InfoNCE, van den Oord et al. 2018, 1807.03748; with the
other rows' documents as negatives, Henderson et al. 2017, 1705.00652).

Axes: R rows, S texts, C candidates (the documents among the texts), D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tunewright.tokens.prefix_tree import Ints
from tunewright.tokens.sequences import Signal, TokenSequence, TrainRow


@dataclass(frozen=True)
class Contrast:
    """What is compared in a step. ``anchor_R``: the text that each row asks with; ``candidate_C``: the text of each
    candidate; ``positive_R``: the candidate that answers each row; ``allowed_RC``: which candidates it is compared
    with."""

    anchor_R: Ints
    candidate_C: Ints
    positive_R: Ints
    allowed_RC: NDArray[np.bool_]

    @property
    def signal(self) -> Signal:
        return vars(self)

    @staticmethod
    def of_signal(signal: Signal) -> Contrast:
        """The inverse of `signal`."""
        anchor_R, candidate_C, positive_R = (
            np.asarray(signal[name], np.int64) for name in ("anchor_R", "candidate_C", "positive_R")
        )
        return Contrast(anchor_R, candidate_C, positive_R, np.asarray(signal["allowed_RC"], np.bool_))

    def renumbered(self, place_S: Ints) -> Contrast:
        """The same with each text at another place."""
        return Contrast(place_S[self.anchor_R], place_S[self.candidate_C], self.positive_R, self.allowed_RC)

    def without(self, count: int) -> Contrast:
        """The same without the first ``count`` rows, whose documents remain candidates."""
        return replace(
            self,
            anchor_R=self.anchor_R[count:],
            positive_R=self.positive_R[count:],
            allowed_RC=self.allowed_RC[count:],
        )


def texts_of(rows: Sequence[TrainRow]) -> tuple[list[TokenSequence], Contrast]:
    """The different texts of a step, and what is compared. Rows have a query, the document that answers it, and any
    number of negatives as their sequences, and ``text_S``, hashes of what these say.

    Every document of the step is a candidate for every row, once. A row is not compared with what may well answer it:
    documents that say the same as its own, that answer another row with the same query, or that are the query itself.
    """
    place: dict[tuple[int, ...], int] = {}
    sequences: list[TokenSequence] = []
    candidate: dict[int, int] = {}  # text -> candidate
    says: list[int] = []  # of each candidate
    anchors, positives = [], []
    answers: dict[int, set[int]] = {}  # what a query says -> what its documents say
    for row in rows:
        for n, (sequence, hashed) in enumerate(zip(row.sequences, row.signal["text_S"].tolist(), strict=True)):
            text = place.setdefault(sequence.ids, len(place))
            if text == len(sequences):
                sequences.append(sequence)
            if n == 0:
                anchors.append(text)
                answers.setdefault(hashed, {hashed}).add(int(row.signal["text_S"][1]))
                continue
            if text not in candidate:
                candidate[text] = len(candidate)
                says.append(hashed)
            if n == 1:
                positives.append(candidate[text])
    says_C = np.array(says)
    allowed_RC = np.array([~np.isin(says_C, list(answers[int(row.signal["text_S"][0])])) for row in rows])
    positive_R = np.array(positives)
    allowed_RC[np.arange(len(rows)), positive_R] = True
    return sequences, Contrast(np.array(anchors), np.array(list(candidate)), positive_R, allowed_RC)


def losses(vector_SD: Tensor, contrast: Contrast, temperature: float) -> tuple[Tensor, Tensor]:
    """(loss_R, whether each row's own document is the most similar one), of vectors of length 1."""
    anchor_R, candidate_C, positive_R, allowed_RC = (
        torch.from_numpy(np.ascontiguousarray(x)).to(vector_SD.device) for x in vars(contrast).values()
    )
    logit_RC = (vector_SD[anchor_R] @ vector_SD[candidate_C].T / temperature).masked_fill(~allowed_RC, -torch.inf)
    return F.cross_entropy(logit_RC, positive_R, reduction="none"), logit_RC.detach().argmax(1) == positive_R
