"""Computes the likelihood of documents with the run's language model. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tunewright.data.messages import Example, Prompt
from tunewright.data.scores import Answer
from tunewright.judge.arms.arm import Model, Progress


@dataclass(frozen=True)
class Reader:
    needs_model: ClassVar[bool] = True
    deterministic: ClassVar[bool] = False
    decoding: ClassVar[str] = "greedy"

    def prompt(self, example: Example) -> Prompt:
        return Prompt()

    def answer(self, examples: Sequence[Example], model: Model | None, progress: Progress) -> list[Answer]:
        assert model is not None
        return model.likelihood(examples, progress)
