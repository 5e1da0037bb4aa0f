"""The settings that decide how structured answers are compared and what they must satisfy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunewright.core.config import Config
from tunewright.core.errors import data_error
from tunewright.core.words import counted
from tunewright.data.graders import graders
from tunewright.data.graders.grade import Grader
from tunewright.data.messages import Example
from tunewright.data.numbers import Numbers
from tunewright.data.structure import schema, schema_file
from tunewright.data.structure.bounded_patterns import SlowPattern
from tunewright.data.structure.comparison import Rules
from tunewright.data.structure.schema import INFERRED, Schema
from tunewright.data.task import number, structured
from tunewright.data.task.corpus import corpus_of
from tunewright.data.task.kind import Task
from tunewright.data.task.number import NUMBER
from tunewright.data.task.retrieval import RETRIEVAL
from tunewright.data.task.rewards import REWARDS, item_of
from tunewright.data.task.tags import ENTITIES, misplaced, words
from tunewright.data.task.tool_calls import TOOL_CALLS, has_valid_parameters, problem


def configured(config: Config, task: Task, train: Sequence[Example], everything: Sequence[Example] = ()) -> Task:
    """The task with the rules of `prove` and the schema of `data.answer_schema`, or one inferred from the training
    rows. ``everything``: the rows of all sides. Raises DATA_FORMAT_MISMATCH for a setting that has no effect on the
    task."""
    rules = Rules(config.prove.list_order == "counted", config.prove.number_tolerance)
    given = {
        "prove.list_order": rules.ordered and task.kind.compare is None,
        "prove.number_tolerance": rules.tolerance and task.kind.compare is None,
        "data.answer_schema": config.data.answer_schema and task.kind.value is None,
    }
    for name in (name for name, has_no_effect in given.items() if has_no_effect):
        message, fix = f"{name} has no effect for a {task.kind.name} task ({task.reason}).", "leave it out."
        if broken := structured.not_json(train) if task.kind.prompted else {}:
            row, why = next(iter(broken.items()))
            message = f"{len(broken)} of {len(train)} answers are not valid JSON, the first {train[row].where}: {why}."
            fix = f"correct them; {name} has no effect on other answers."
        raise data_error("DATA_FORMAT_MISMATCH", message, where=name, fix=fix)
    if task.kind is REWARDS:
        grader = _grader(config.reward.grader, "reward.grader", everything or train)
        check = _grader(config.reward.check, "reward.check", everything or train)
        return replace(task, grader=grader, check=check)
    if task.kind is RETRIEVAL:
        return replace(task, corpus=corpus_of(everything or train, config.split.near_duplicate))
    known = Numbers.of(number.targets(train)) if task.kind is NUMBER else None
    if known is not None and known.low == known.high:
        message = "the training rows have one and the same answer, so there is nothing to learn."
        raise data_error("DATA_FORMAT_MISMATCH", message, where="data.train", fix="use rows with different answers.")
    return replace(task, rules=rules, schema=_schema(config, task, train), numbers=known)


def _grader(spec: graders.Spec, where: str, rows: Sequence[Example]) -> Grader | None:
    """None if none is set. Raises CONFIG_*, and DATA_FIELD_MISSING for a row that lacks a field that it reads."""
    if not spec:
        return None
    grader = graders.of(spec, where)
    for example in rows:
        given = {name for name, value in item_of(example).items() if value is not None}
        if lacking := sorted(grader.fields - given):
            message, fix = (
                f"{where} reads item.{lacking[0]}, which the row does not have.",
                "add it, or correct the path.",
            )
            raise data_error("DATA_FIELD_MISSING", message, where=example.where, fix=fix)
    return grader


def _schema(config: Config, task: Task, train: Sequence[Example]) -> Schema | None:
    if task.kind.value is None:
        return None
    if config.data.answer_schema:
        return schema_file.load(config.data.answer_schema)
    values = [value for e in train if (value := task.kind.value(e)) is not None]
    return Schema(INFERRED, schema.infer(values)) if values else None


MOST_SLOW = 5  # answers on which a pattern may take too long


@dataclass(frozen=True)
class Violation:
    """Rows whose reference answer violates what it must satisfy, with a code and a message for the audit."""

    code: str
    message: str
    rows: tuple[int, ...]


def violations(task: Task, examples: Sequence[Example]) -> list[Violation]:
    """Reference answers that violate the user's schema, or call tools in a way that their row does not allow."""
    if task.kind is ENTITIES:
        wrong = {i: text for i, e in enumerate(examples) if (text := misplaced(words(e.target)))}
        what = counted(len(wrong), "row has a tag that continues", "rows have tags that continue")
        return _violation("TAGS_ORDER", f"{what} a span that has not begun, so one is begun there; the first:", wrong)
    if task.kind is TOOL_CALLS:
        return [*_calls(examples), *_tools(examples), *_undeclared(examples)]
    not_json = _not_json(task, examples)
    if task.schema is None or task.schema.source == INFERRED or task.kind.value is None:
        return not_json
    wrong = {}
    slow = 0
    for i, e in enumerate(examples):
        try:
            text = task.schema.checked(task.kind.value(e))
        except SlowPattern as pattern:
            slow, text = slow + 1, f"the pattern {pattern} takes too long"
            if slow == MOST_SLOW:
                message = f"the pattern {pattern} takes too long on {slow} answers, the last of them {e.where}."
                fix = "avoid repetitions within repetitions in it."
                raise data_error("DATA_SCHEMA", message, where=task.schema.source, fix=fix) from None
        if text:
            wrong[i] = text
    what = counted(len(wrong), "answer does not satisfy", "answers do not satisfy")
    return [*not_json, *_violation("SCHEMA_VIOLATED", f"{what} data.answer_schema; the first:", wrong)]


def _not_json(task: Task, examples: Sequence[Example]) -> list[Violation]:
    """The answers that are not JSON, where most are or look like it."""
    wrong = structured.not_json(examples) if task.kind.prompted else {}
    if not wrong:
        return []
    what = f"{len(wrong)} of {len(examples)} answers are not valid JSON"
    if task.kind is not structured.JSON:
        what = f"most answers look like JSON, but {what}, so this is a {task.kind.name} task"
    return _violation("ANSWERS_NOT_JSON", f"{what}; the first:", wrong)


def _calls(examples: Sequence[Example]) -> list[Violation]:
    wrong: dict[int, str] = {}
    for i, e in enumerate(examples):
        tools = e.prompt.tools
        problems = [text for call in e.messages[-1].tool_calls if (text := problem(call, tools))]
        if problems:
            wrong[i] = problems[0]
    what = counted(len(wrong), "answer makes calls", "answers make calls")
    return _violation("CALLS_INVALID", f"{what} that their row does not allow; the first:", wrong)


def _tools(examples: Sequence[Example]) -> list[Violation]:
    wrong = {}
    for i, e in enumerate(examples):
        names = [t["function"]["name"] for t in e.prompt.tools if not has_valid_parameters(t)]
        if names:
            wrong[i] = names[0]
    what = counted(len(wrong), "row declares", "rows declare")
    message = f"{what} a tool whose parameters are not a valid JSON Schema, so arguments are not checked:"
    return _violation("TOOLS_INVALID", message, wrong)


def _undeclared(examples: Sequence[Example]) -> list[Violation]:
    rows = tuple(i for i, e in enumerate(examples) if e.messages[-1].tool_calls and not e.prompt.tools)
    what = f"{counted(len(rows), 'row calls', 'rows call')} tools without declaring any (field tools)"
    message = f"{what}: the prompt does not offer them, and arguments are not checked"
    return [Violation("TOOLS_MISSING", message, rows)] if rows else []


def _violation(code: str, message: str, wrong: dict[int, str]) -> list[Violation]:
    if not wrong:
        return []
    return [Violation(code, f"{message} {next(iter(wrong.values()))}", tuple(wrong))]
