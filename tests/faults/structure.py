"""Structured answers: what counts as right."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from faults import Fault, Patch
from tunewright.data.messages import Chat, Message, ToolCall
from tunewright.data.scores import Answer, Written
from tunewright.data.structure import comparison
from tunewright.data.structure.comparison import Comparison
from tunewright.data.task import detect_task, kind, structured, tool_calls


def score(target: str, answer: str, *calls: ToolCall) -> float:
    row = Chat((Message("user", "q"), Message("assistant", target, calls)), "x:1")
    return detect_task([row]).score(row, Answer(answer, Written(1, False))).score


PEOPLE = json.dumps([{"name": "Ann", "type": "X"}, {"name": "Bob", "type": "Y"}])


def fields_belong_to_their_item() -> None:
    assert score(PEOPLE, PEOPLE) == 1.0
    assert score(PEOPLE, PEOPLE.replace("X", "Z").replace("Y", "X").replace("Z", "Y")) == 0.5


def fields_of_all_items_together(patch: Patch) -> None:
    def compare(target: Any, answer: Any, rules: Any) -> Comparison:
        expected, given = Counter(comparison._fields(target, "")), Counter(comparison._fields(answer, ""))
        right, wrong, missed = expected & given, given - expected, expected - given
        return Comparison(*(tuple(part.elements()) for part in (right, wrong, missed)))

    patch.setattr(structured, "compare", compare)


def nothing_is_an_answer() -> None:
    assert score("[]", "[]") == 1.0
    for answer in ("", "There are none.", PEOPLE):
        assert score("[]", answer) == 0.0


def nothing_has_no_fields(patch: Patch) -> None:
    plain = comparison.compare

    def compare(target: Any, answer: Any, rules: Any) -> Comparison:
        return plain(target, answer, rules) if target else Comparison(wrong=tuple(comparison._fields(answer or {}, "")))

    patch.setattr(structured, "compare", compare)


def drafts_are_not_answers() -> None:
    assert score(PEOPLE, f"<think>Maybe {PEOPLE}? No.</think>[]") == 0.0
    assert score(PEOPLE, f"<think>Maybe {PEOPLE}?") == 0.0
    assert score(PEOPLE, f"<think>Maybe []? No.</think>{PEOPLE}") == 1.0


def thoughts_are_answers(patch: Patch) -> None:
    patch.setattr(kind, "without_thoughts", lambda answer: answer)


def arguments_belong_to_their_tool() -> None:
    call, other = ToolCall("mail", {"to": "Ann"}), ToolCall("call", {"to": "Ann"})
    assert score("", call.text, call) == 1.0
    assert score("", other.text, call) == 0.0


def arguments_of_any_tool(patch: Patch) -> None:
    patch.setattr(tool_calls, "_tree", lambda calls: [{"name": c.name, "arguments": c.arguments} for c in calls])


FAULTS = [
    Fault(35, "fields of different items of a list count as right together", "", "items are matched one to one: swapped fields are wrong", fields_belong_to_their_item, fields_of_all_items_together),
    Fault(36, "an answer that cannot be read is right where nothing was to be extracted", "", "that nothing is there is a field of such a target", nothing_is_an_answer, nothing_has_no_fields),
    Fault(37, "a draft in the thoughts of a model is read as its answer", "", "an answer begins after its thoughts; thoughts that do not end have no answer", drafts_are_not_answers, thoughts_are_answers),
    Fault(38, "an argument of another tool counts as right", "", "only calls of the same tool have fields in common", arguments_belong_to_their_tool, arguments_of_any_tool),
]  # fmt: skip
