"""Tasks are recognised from the rows; each kind has its own metric, summary and instruction."""

from __future__ import annotations

import json

from tunewright.data.messages import Chat, Message, Text
from tunewright.data.scores import Answer, Written
from tunewright.data.task import KINDS, detect_task


def test_tasks_are_recognised_from_the_rows() -> None:
    def chats(*targets: str) -> list[Chat]:
        return [Chat((Message("user", f"q{i}"), Message("assistant", t)), "x") for i, t in enumerate(targets)]

    assert detect_task(chats(*["yes", "no"] * 20)).kind.name == "label"
    assert detect_task(chats(*[json.dumps({"a": i}) for i in range(20)])).kind.name == "json"
    assert detect_task(chats(*[f"word{i}" for i in range(20)])).metric.name == "exact_match"
    assert (
        detect_task(chats(*[f"a long answer with number {i} in many words" for i in range(20)])).metric.name == "chrf"
    )
    assert detect_task([Text("a document", "x")]).kind.name == "text"


def test_a_summary_has_every_metric_that_its_kind_names() -> None:
    rows = [Chat((Message("user", "q"), Message("assistant", t)), "x") for t in ("yes", "no")]
    for kind in KINDS:
        task = kind.detect(rows[:1]) if kind.prompted else None
        if task is None:
            continue
        scores = [task.score(e, Answer("yes", Written(1, False), e.prompt, 1)) for e in rows[:1]]
        assert tuple(task.summary(scores)) == kind.summary
        assert task.summary([]) == {}
