"""Chooses the label that the run's language model finds most probable after a prompt. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tunewright.data.messages import Example, Prompt
from tunewright.data.scores import Answer
from tunewright.judge.arms.arm import Model, Progress
from tunewright.judge.arms.prompts import OWN_PROMPT, Recipe


@dataclass(frozen=True)
class LabelScored:
    labels: tuple[str, ...]
    recipe: Recipe = OWN_PROMPT
    needs_model: ClassVar[bool] = True
    deterministic: ClassVar[bool] = False
    decoding: ClassVar[str] = "greedy"

    def prompt(self, example: Example) -> Prompt:
        return self.recipe.prompt(example)

    def answer(self, examples: Sequence[Example], model: Model | None, progress: Progress) -> list[Answer]:
        assert model is not None
        return model.choose_label([self.prompt(e) for e in examples], self.labels, progress)
