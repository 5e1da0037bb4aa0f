"""Answers with the head of the run's language model: a label, or a number. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tunewright.data.messages import Example, Prompt
from tunewright.data.scores import Answer
from tunewright.judge.arms.arm import Model, Progress
from tunewright.judge.arms.prompts import OWN_PROMPT, Recipe


@dataclass(frozen=True)
class Headed:
    recipe: Recipe = OWN_PROMPT
    needs_model: ClassVar[bool] = True
    deterministic: ClassVar[bool] = False
    decoding: ClassVar[str] = "greedy"

    def prompt(self, example: Example) -> Prompt:
        return self.recipe.prompt(example)

    def answer(self, examples: Sequence[Example], model: Model | None, progress: Progress) -> list[Answer]:
        assert model is not None
        return model.by_head([self.prompt(e) for e in examples], progress)
