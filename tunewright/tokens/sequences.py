"""What is trained on: token sequences with loss weights, and the rows that tie sequences together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tunewright.core.errors import ModelError

# Numbers that a method keeps with a row or a microbatch, by name: a teacher's probabilities, a reference model's
# log-probability.
Signal = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class TokenSequence:
    """Token ids of one sequence; ``weights[t]`` is the loss weight of predicting ``ids[t]`` (``weights[0]`` is 0)."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    row: int

    @property
    def supervised(self) -> int:
        """Number of tokens that carry loss."""
        return sum(w != 0 for w in self.weights)

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens before the first that carries loss."""
        return self.ids[: next(t for t, w in enumerate(self.weights) if w)]


@dataclass(frozen=True)
class TrainRow:
    """Sequences that are trained together: in one step and in one forward pass, in this order.

    One sequence in supervised fine-tuning; a chosen and a rejected answer, or a group of samples, in other methods.
    ``row`` is the row of the data set they were rendered from, ``signal`` anything else that the method needs to know
    about it (see `methods.method`).
    """

    sequences: tuple[TokenSequence, ...]
    row: int
    signal: Signal = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return sum(len(s.ids) for s in self.sequences)

    @property
    def supervised(self) -> int:
        return sum(s.supervised for s in self.sequences)


def prompt_then_answer(prompt: Sequence[int], answer: Sequence[int], row: int) -> TokenSequence:
    """``prompt`` followed by ``answer``, the answer with weight 1."""
    return TokenSequence((*prompt, *answer), (*[0.0] * len(prompt), *[1.0] * len(answer)), row)


def head_sequence(prompt: Sequence[int], end: int, row: int) -> TokenSequence:
    """``prompt`` and the place behind it, where a head answers. Nothing reads the token ``end``, so the only prediction
    is made at the last token of the prompt, by its length."""
    return prompt_then_answer(prompt, [end], row)


def single(sequence: TokenSequence) -> TrainRow:
    """A row of one sequence."""
    return TrainRow((sequence,), sequence.row)


def flat(rows: Iterable[TrainRow]) -> list[TokenSequence]:
    """The rows' sequences, in order."""
    return [s for r in rows for s in r.sequences]


def digest(rows: Iterable[TrainRow]) -> str:
    """sha256 over all that training reads of the rows: tokens, weights, signals, and which sequences belong together.

    A run that is resumed must find the same: rows with precomputed signals are not a function of the data files alone.
    """
    total = hashlib.sha256()
    for r in rows:
        total.update(f"{r.row} {[(s.ids, s.weights) for s in r.sequences]!r}\n".encode())
        for name in sorted(r.signal):
            values = np.ascontiguousarray(r.signal[name])
            total.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
            total.update(values.tobytes())
    return total.hexdigest()


def check_ids(rows: Iterable[TrainRow], vocabulary: int, folder: str) -> None:
    """Raises TOKENIZER_MISMATCH where a row holds a token for which the model has no embedding."""
    highest = max((max(s.ids) for s in flat(rows)), default=0)
    if highest >= vocabulary:
        raise ModelError(
            "TOKENIZER_MISMATCH",
            f"a row holds token {highest}; the model has embeddings for {vocabulary}.",
            where=folder,
            fix="use the tokenizer that belongs to these weights.",
        )
