"""Rows without answers: what is written to their prompts is graded, and compared with nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tunewright.data import corpus_metrics
from tunewright.data.graders import graders
from tunewright.data.graders.grade import Answered, Output
from tunewright.data.graders.reward_model import RewardModel, Scores
from tunewright.data.messages import Chat, Example, Json
from tunewright.data.metrics import METRICS
from tunewright.data.scores import Readings
from tunewright.data.task.kind import Task, TaskKind
from tunewright.data.text import exact, without_thoughts


def _detect(examples: Sequence[Example]) -> Task | None:
    if not (isinstance(examples[0], Chat) and examples[0].item is not None):
        return None
    return Task(REWARDS, METRICS["reward"], "prompts without answers: the mean reward of greedy answers")


def item_of(example: Example) -> dict[str, Json]:
    """The fields that graders read."""
    assert isinstance(example, Chat)
    assert example.item is not None
    return example.item


def answered(example: Example, text: str) -> Answered:
    """An answer to a row, as graders read it."""
    return item_of(example), Output(text, example.prompt)


def stored_in(task: Task, file: Path) -> Task:
    """The task, whose models that grade keep their scores in ``file``."""
    grader, check = (g and graders.stored_in(g, file) for g in (task.grader, task.check))
    return replace(task, grader=grader, check=check)


def scored_by(task: Task, scores: Scores) -> Task:
    """The task, whose reward models have scores that ``scores`` computes."""
    grader, check = (g and graders.scored_by(g, scores) for g in (task.grader, task.check))
    return replace(task, grader=grader, check=check)


def reward_models(task: Task) -> tuple[RewardModel, ...]:
    """The different ones that grade."""
    every = [model for g in (task.grader, task.check) if g for model in graders.reward_models(g)]
    return tuple({model.path: model for model in every}.values())


def prepared(task: Task, examples: Sequence[Example], texts: Sequence[str]) -> Task:
    """The task, whose models that grade have been asked about these answers, several at a time. Raises
    REWARD_FAILED."""
    if task.grader is None:
        return task
    answers = [answered(e, without_thoughts(text)) for e, text in zip(examples, texts, strict=True)]
    check = task.check and graders.prepared(task.check, answers)
    return replace(task, grader=graders.prepared(task.grader, answers), check=check)


def _read(task: Task, example: Example, answer: str) -> Readings:
    assert task.grader is not None
    graded = graders.grade(task.grader, *answered(example, answer))
    check = (graders.grade(task.check, *answered(example, answer)).reward or 0.0) if task.check else None
    return Readings(reward=graded.reward, check=check, ungraded=graded.problem or None)


def _instruct(task: Task, train: Sequence[Chat]) -> str:
    return "Do exactly what is asked, and write nothing else."


def _canonical(example: Example) -> str:
    """Rows with one prompt say the same if graders read the same."""
    return exact(repr(sorted(item_of(example).items(), key=lambda field: field[0])))


REWARDS = TaskKind(
    name="rewards",
    detect=_detect,
    read=_read,
    instruct=_instruct,
    corpus=corpus_metrics.MEAN_REWARD,
    summary=("reward_check", "ungraded", "cut_answers"),
    canonical=_canonical,
)
