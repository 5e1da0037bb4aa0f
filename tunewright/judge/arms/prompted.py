"""Generates an answer to a prompt with the run's language model. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from tunewright.core.sampling import DECODINGS
from tunewright.data.messages import Example, Prompt
from tunewright.data.scores import Answer
from tunewright.judge.arms.arm import Model, Progress
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

    def answer(self, examples: Sequence[Example], model: Model | None, progress: Progress) -> list[Answer]:
        assert model is not None
        prompts = [self.prompt(e) for e in examples]
        answers = model.generate(prompts, progress, DECODINGS[self.decoding])
        if not self.references:
            return answers
        likelihoods = model.likelihoods(prompts, [e.messages[-1] for e in examples])
        return [replace(answer, reference=one) for answer, one in zip(answers, likelihoods, strict=True)]
