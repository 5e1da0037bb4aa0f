"""Graders from the objects of a config, which are those of OpenAI's API; and grading a batch of answers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from tunewright.core.errors import ConfigError, TrainError
from tunewright.core.words import counted
from tunewright.data.graders import formula, reward_model, score_model, texts
from tunewright.data.graders.formula import Multi
from tunewright.data.graders.grade import Answered, Grader, Item, Output, Template, Unscored
from tunewright.data.graders.python_grader import PythonGrader
from tunewright.data.graders.reward_model import RewardModel, Scores
from tunewright.data.graders.score_model import ScoreModel
from tunewright.data.graders.texts import Compared, SchemaValid
from tunewright.data.messages import Json
from tunewright.data.structure import schema
from tunewright.data.structure.schema import Schema

Spec = Mapping[str, Json]
MOST_UNSCORED = 0.05  # of the answers of a batch
NEED = 2  # answers without a reward that stop a run, at least: one of a small batch says little
T = TypeVar("T")


def of(spec: Spec, where: str) -> Grader:
    """The grader of an object of the config. Raises CONFIG_RANGE or CONFIG_UNKNOWN_KEY."""
    kind = spec.get("type")
    if kind not in _KINDS:
        message, fix = f"there is no grader of type {kind!r}.", f"use {', '.join(_KINDS)}."
        raise ConfigError("CONFIG_RANGE", message, where=where, fix=fix)
    keys, build = _KINDS[str(kind)]
    known = ("type", "name", *keys, *_OPTIONAL.get(str(kind), ()))
    if unknown := [key for key in spec if key not in known]:
        message = f"a {kind} grader has no key {unknown[0]!r}."
        raise ConfigError("CONFIG_UNKNOWN_KEY", message, where=where, fix=f"its keys: {', '.join(known)}.")
    if missing := [key for key in keys if key not in spec]:
        raise ConfigError("CONFIG_RANGE", f"a {kind} grader needs the key {missing[0]!r}.", where=where)
    return build(spec, where)


def _one_of(spec: Spec, key: str, known: Mapping[str, object], where: str) -> str:
    value = spec[key]
    if value not in known:
        raise ConfigError("CONFIG_RANGE", f"{key} is {value!r}.", where=where, fix=f"use {', '.join(known)}.")
    return str(value)


def _compared(key: str, known: Mapping[str, object]) -> Callable[[Spec, str], Grader]:
    def build(spec: Spec, where: str) -> Grader:
        both = (Template.of(spec[name], name, where) for name in ("input", "reference"))
        return Compared(_one_of(spec, key, known, where), *both)

    return build


def _python(spec: Spec, where: str) -> Grader:
    if not isinstance(spec["source"], str):
        raise ConfigError("CONFIG_RANGE", "source must be text.", where=where, fix="write `source: |` and the code.")
    grader = PythonGrader(spec["source"])
    grader.check(where)
    return grader


def _schema(spec: Spec, where: str) -> Grader:
    value = spec["schema"]
    problem = "it is not an object" if not isinstance(value, dict) else schema.invalid(value)
    if problem or not isinstance(value, dict):
        raise ConfigError("CONFIG_RANGE", f"schema is not a JSON Schema: {problem}.", where=where)
    return SchemaValid(Schema(where, value))


def _multi(spec: Spec, where: str) -> Grader:
    parts, output = spec["graders"], spec["calculate_output"]
    named = isinstance(parts, dict) and all(isinstance(part, dict) for part in parts.values())
    if not (isinstance(parts, dict) and parts and named and all(re.fullmatch(r"[A-Za-z_]\w*", name) for name in parts)):
        message, fix = (
            "graders must map names (letters, digits and _, no digit first) to grader objects.",
            "write {accuracy: {type: ...}, ...}.",
        )
        raise ConfigError("CONFIG_RANGE", message, where=where, fix=fix)
    formula.check(str(output), parts, where)
    own = ((name, of(part, f"{where}.graders.{name}")) for name, part in parts.items() if isinstance(part, dict))
    return Multi(tuple(own), str(output))


_KINDS: dict[str, tuple[tuple[str, ...], Callable[[Spec, str], Grader]]] = {
    "string_check": (("input", "reference", "operation"), _compared("operation", texts.OPERATIONS)),
    "text_similarity": (
        ("input", "reference", "evaluation_metric"),
        _compared("evaluation_metric", texts.SIMILARITIES),
    ),
    "metric": (("input", "reference", "metric"), _compared("metric", texts.OWN)),
    "json_schema": (("schema",), _schema),
    "python": (("source",), _python),
    "multi": (("graders", "calculate_output"), _multi),
    "score_model": (("input", "model", "url"), score_model.of),
    "reward_model": (("model",), reward_model.of),
}
_OPTIONAL = {"score_model": ("range", "sampling_params", "api_key_env", "concurrency"), "reward_model": ("range",)}


@dataclass(frozen=True)
class Graded:
    """``reward``: None if the grader failed, for the reason in ``problem``."""

    reward: float | None
    problem: str = ""


def grade(grader: Grader, item: Item, output: Output) -> Graded:
    """The reward of one answer."""
    try:
        reward = grader.grade(item, output)
    except Unscored as error:
        return Graded(None, str(error))
    if not (math.isfinite(reward) and 0 <= reward <= 1):
        return Graded(None, f"a reward of {reward:g}, which is not from 0 to 1")
    return Graded(reward)


def grade_all(grader: Grader, answers: Sequence[Answered]) -> list[Graded]:
    """The rewards of several answers, each with its row's fields. Raises REWARD_FAILED if a model that grades cannot
    be asked."""
    ready = prepared(grader, answers)
    return [grade(ready, item, output) for item, output in answers]


def prepared(grader: Grader, answers: Sequence[Answered]) -> Grader:
    """The same grader, whose models have been asked about these answers, several at a time. Raises REWARD_FAILED."""
    return _mapped(grader, lambda part: part.prepared(answers) if isinstance(part, ScoreModel | RewardModel) else part)


def stored_in(grader: Grader, file: Path) -> Grader:
    """The same grader, whose models keep their scores in ``file``."""
    return _mapped(grader, lambda part: replace(part, store=file) if isinstance(part, ScoreModel) else part)


def scored_by(grader: Grader, scores: Scores) -> Grader:
    """The same grader, whose reward models have scores that ``scores`` computes."""
    return _mapped(grader, lambda part: replace(part, scores=scores) if isinstance(part, RewardModel) else part)


def reward_models(grader: Grader) -> list[RewardModel]:
    """Those that a grader asks."""
    if isinstance(grader, Multi):
        return [model for _, part in grader.graders for model in reward_models(part)]
    return [grader] if isinstance(grader, RewardModel) else []


def _mapped(grader: Grader, change: Callable[[Grader], Grader]) -> Grader:
    """The grader, with each one that has no parts changed."""
    if isinstance(grader, Multi):
        return replace(grader, graders=tuple((name, _mapped(part, change)) for name, part in grader.graders))
    return change(grader)


def require_scored(graded: Sequence[Graded], where: str) -> None:
    """Raises REWARD_FAILED if too many answers of a batch have no reward."""
    failed = [g for g in graded if g.reward is None]
    if len(failed) >= NEED and len(failed) > MOST_UNSCORED * len(graded):
        raise TrainError(
            "REWARD_FAILED",
            f"the grader failed on {len(failed)} of {counted(len(graded), 'answer')}, first with: {failed[0].problem}.",
            where=where,
            fix="let it give a number for every answer, also for empty and wrong ones (python: from 0 to 1, within 5 "
            "seconds). If what it needs was away, the same command continues; another grader needs a new run.",
        )
