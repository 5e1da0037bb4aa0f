"""Run arms on held-out rows and score their answers. No torch, unless the arm imports it."""

from __future__ import annotations

from collections.abc import Sequence

from tunewright.data.messages import Example
from tunewright.data.scores import Score
from tunewright.data.task import Task, rewards
from tunewright.judge.arms.arm import Arm, Model, Progress, silent
from tunewright.judge.arms.prompted import Prompted


def score_arm(
    arm: Arm, examples: Sequence[Example], task: Task, model: Model | None, progress: Progress = silent
) -> list[Score]:
    """Scores of one arm, in the order of the examples. ``model``: the run's language model, if the arm needs it;
    ``progress(n)`` is called as n rows finish."""
    answers = arm.answer(examples, model, progress)
    task = rewards.prepared(task, examples, [answer.text for answer in answers])
    return [task.score(example, answer) for example, answer in zip(examples, answers, strict=True)]


def decoded_together(arm: Arm) -> bool:
    """Whether `score_writers` can score it."""
    return isinstance(arm.responder, Prompted)


def reads_references(arm: Arm) -> bool:
    """Whether it also computes how likely the reference answers are."""
    return isinstance(arm.responder, Prompted) and arm.responder.references


def score_writers(
    arms: Sequence[Arm], examples: Sequence[Example], task: Task, model: Model, progress: Progress = silent
) -> list[list[Score]]:
    """`score_arm` of each arm, all decoded together, which takes less time. Only the last bits of logits may differ."""
    responders = [arm.responder for arm in arms if isinstance(arm.responder, Prompted)]
    assert len(responders) == len(arms)
    written = model.generate([responder.writing(examples) for responder in responders], progress)
    answers = [responder.completed(examples, model, own) for responder, own in zip(responders, written, strict=True)]
    task = rewards.prepared(task, [*examples] * len(arms), [answer.text for own in answers for answer in own])
    return [[task.score(e, answer) for e, answer in zip(examples, own, strict=True)] for own in answers]
