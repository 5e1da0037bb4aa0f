"""Rows without answers: what is written to their prompts is graded, and compared with nothing."""

from __future__ import annotations

from collections.abc import Sequence

from tunewright.data import corpus_metrics
from tunewright.data.graders import graders
from tunewright.data.messages import Chat, Example, Json
from tunewright.data.metrics import METRICS
from tunewright.data.scores import Readings
from tunewright.data.task.kind import Task, TaskKind
from tunewright.data.text import exact


def _detect(examples: Sequence[Example]) -> Task | None:
    if not (isinstance(examples[0], Chat) and examples[0].item is not None):
        return None
    return Task(REWARDS, METRICS["reward"], "prompts without answers: the mean reward of greedy answers")


def item_of(example: Example) -> dict[str, Json]:
    """The fields that graders read."""
    assert isinstance(example, Chat)
    assert example.item is not None
    return example.item


def _read(task: Task, example: Example, answer: str) -> Readings:
    assert task.grader is not None
    item = item_of(example)
    graded = graders.grade(task.grader, item, answer)
    check = (graders.grade(task.check, item, answer).reward or 0.0) if task.check else None
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
