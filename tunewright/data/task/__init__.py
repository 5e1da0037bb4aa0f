"""The task of the rows: to give a label, structured values, tool calls or free-form answers, to find documents, to earn
rewards, or to continue documents.

`KINDS` has those that rows show, in the order of detection; a training method reads rows as NUMBER, LABEL_SET,
RANKING, ENTITIES or TAGS.
"""

from __future__ import annotations

from collections.abc import Sequence

from tunewright.data.messages import Example
from tunewright.data.task.documents import TEXT
from tunewright.data.task.free_text import CSV, GENERATION, LABEL
from tunewright.data.task.kind import Task, TaskKind
from tunewright.data.task.label_set import LABEL_SET
from tunewright.data.task.number import NUMBER
from tunewright.data.task.ranking import RANKING
from tunewright.data.task.retrieval import RETRIEVAL
from tunewright.data.task.rewards import REWARDS
from tunewright.data.task.structured import JSON, XML, YAML
from tunewright.data.task.tags import ENTITIES, TAGS
from tunewright.data.task.tool_calls import TOOL_CALLS

__all__ = [
    "ENTITIES",
    "GENERATION",
    "JSON",
    "KINDS",
    "LABEL",
    "LABEL_SET",
    "NUMBER",
    "RANKING",
    "RETRIEVAL",
    "REWARDS",
    "TAGS",
    "TEXT",
    "TOOL_CALLS",
    "Task",
    "TaskKind",
    "detect_task",
]

KINDS = (TEXT, REWARDS, RETRIEVAL, TOOL_CALLS, JSON, LABEL, XML, YAML, CSV, GENERATION)


def detect_task(examples: Sequence[Example]) -> Task:
    """The task, from the first of `KINDS` that detects it; the last accepts every row that has an answer."""
    return next(task for kind in KINDS if (task := kind.detect(examples)) is not None)
