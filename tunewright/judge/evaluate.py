"""Run an arm on held-out rows and score its answers. No torch, unless the arm imports it."""

from __future__ import annotations

from collections.abc import Sequence

from tunewright.data.messages import Example
from tunewright.data.scores import Score
from tunewright.data.task import Task
from tunewright.judge.arms.arm import Arm, Model, Progress, silent


def score_arm(
    arm: Arm, examples: Sequence[Example], task: Task, model: Model | None, progress: Progress = silent
) -> list[Score]:
    """Scores of one arm, in the order of the examples. ``model``: the run's language model, if the arm needs it;
    ``progress(n)`` is called as n rows finish."""
    answers = arm.answer(examples, model, progress)
    return [task.score(example, answer) for example, answer in zip(examples, answers, strict=True)]
