"""Several samples, of which the grader chooses one: what can be had of rewards without training. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tunewright.core.sampling import Sampling
from tunewright.data.graders import graders
from tunewright.data.graders.grade import Grader
from tunewright.data.messages import Example, Prompt
from tunewright.data.scores import Answer
from tunewright.data.task.rewards import answered
from tunewright.data.text import without_thoughts
from tunewright.judge.arms.arm import Model, Progress, Writing
from tunewright.judge.arms.prompts import OWN_PROMPT


@dataclass(frozen=True)
class BestOf:
    """``count`` samples at temperature 1, and the first of those with the highest reward."""

    grader: Grader
    count: int
    needs_model: ClassVar[bool] = True
    deterministic: ClassVar[bool] = False
    decoding: ClassVar[str] = "greedy"  # of the choices of prove.decoding, which are not for these rows, the first

    def prompt(self, example: Example) -> Prompt:
        return OWN_PROMPT.prompt(example)

    def answer(self, examples: Sequence[Example], model: Model | None, progress: Progress) -> list[Answer]:
        assert model is not None
        prompts = [self.prompt(e) for e in examples]
        samples = model.generate([Writing(prompts, Sampling(temperature=1.0, seed=n)) for n in range(self.count)])
        progress(len(examples))
        answers = [answered(e, without_thoughts(a.text)) for own in samples for e, a in zip(examples, own, strict=True)]
        rewards = iter([graded.reward or 0.0 for graded in graders.grade_all(self.grader, answers)])
        reward_of = [[next(rewards) for _ in own] for own in samples]
        best = [own.index(max(own)) for own in zip(*reward_of, strict=True)]
        return [samples[n][i] for i, n in enumerate(best)]
