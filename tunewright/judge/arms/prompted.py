"""Generates an answer to a prompt with the run's language model. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from tunewright.core.sampling import DECODINGS
from tunewright.data.messages import Example, Prompt
from tunewright.data.scores import Answer
from tunewright.judge.arms.arm import Model, Progress, Writing
from tunewright.judge.arms.prompts import OWN_PROMPT, Recipe


@dataclass(frozen=True)
class Prompted:
    """``references``: also computes how likely the reference answers are. ``decoding``: a key of `DECODINGS`."""

    recipe: Recipe = OWN_PROMPT
    references: bool = False
    decoding: str = "greedy"
    needs_model: ClassVar[bool] = True
    deterministic: ClassVar[bool] = False

    def prompt(self, example: Example) -> Prompt:
        return self.recipe.prompt(example)

    def writing(self, examples: Sequence[Example]) -> Writing:
        """What the model must write for these rows."""
        return Writing([self.prompt(e) for e in examples], DECODINGS[self.decoding])

    def completed(self, examples: Sequence[Example], model: Model, written: Sequence[Answer]) -> list[Answer]:
        """The answers, given what the model wrote."""
        if not self.references:
            return list(written)
        prompts = [self.prompt(e) for e in examples]
        likelihoods = model.likelihoods(prompts, [e.messages[-1] for e in examples])
        return [replace(answer, reference=one) for answer, one in zip(written, likelihoods, strict=True)]

    def answer(self, examples: Sequence[Example], model: Model | None, progress: Progress) -> list[Answer]:
        assert model is not None
        (written,) = model.generate([self.writing(examples)], progress)
        return self.completed(examples, model, written)
