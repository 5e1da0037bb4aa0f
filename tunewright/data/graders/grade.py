"""What graders read, and what they return; the templates in which a config names both."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tunewright.core.errors import ConfigError
from tunewright.data.messages import Json, Prompt
from tunewright.data.structure.values import MAX_DEPTH

Item = Mapping[str, Json]  # the fields of a row
WHERE = "reward.grader"


@dataclass(frozen=True)
class Output:
    """A sampled answer: its text without special tokens, and the prompt that it answers."""

    text: str
    prompt: Prompt = field(default_factory=Prompt)

    @functools.cached_property
    def json(self) -> Json:
        """The value that all of the text is as JSON; None if it is none."""
        try:
            value: Json = json.loads(self.text, parse_constant=_not_json)
            return value if _depth(value) <= MAX_DEPTH else None
        except (ValueError, RecursionError):
            return None


def _not_json(name: str) -> None:
    raise ValueError(name)


def _depth(value: Json) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


class Unscored(Exception):
    """A grader could not say what an answer is worth: it failed, or took too long."""


class Grader(Protocol):
    """How an answer is graded. A grader is a frozen value, and its repr is part of the hash of what it has graded."""

    def grade(self, item: Item, output: Output) -> float:
        """The reward, from 0 to 1. Raises Unscored."""
        ...

    @property
    def fields(self) -> frozenset[str]:
        """The fields of a row that must not be missing."""
        ...


Answered = tuple[Item, Output]


# -- templates

_SLOT = re.compile(r"\{\{(.*?)\}\}", re.S)
_PATH = re.compile(r"\s*(item|sample)((?:\.\w+|\[\d+\])+)\s*")
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")
Step = str | int


@dataclass(frozen=True)
class Template:
    """A text with slots ``{{ item.field }}``, ``{{ sample.output_text }}`` and ``{{ sample.output_json.key[0] }}``.
    ``parts``: texts, and the paths of slots."""

    parts: tuple[str | tuple[Step, ...], ...]

    @classmethod
    def of(cls, text: Json, name: str, where: str) -> Template:
        """Raises CONFIG_RANGE for what is not a template."""
        if not isinstance(text, str):
            raise ConfigError("CONFIG_RANGE", f"{name} must be text, not {text!r}.", where=where)
        parts: list[str | tuple[Step, ...]] = []
        for n, part in enumerate(_SLOT.split(text)):
            parts.append(_path(part, where) if n % 2 else part)
        return cls(tuple(part for part in parts if part != ""))

    @property
    def fields(self) -> frozenset[str]:
        paths = (part for part in self.parts if isinstance(part, tuple))
        return frozenset(str(path[1]) for path in paths if path[0] == "item")

    def filled(self, item: Item, output: Output) -> str | None:
        """The text; None if the answer or the row does not have a part that a slot names."""
        texts = list(self._texts(item, output))
        return None if any(text is None for text in texts) else "".join(filter(None, texts))

    def _texts(self, item: Item, output: Output) -> Iterator[str | None]:
        for part in self.parts:
            if isinstance(part, str):
                yield part
                continue
            try:
                yield _text(_value(part, item, output))
            except (KeyError, IndexError, TypeError):
                yield None


def _path(slot: str, where: str) -> tuple[Step, ...]:
    match = _PATH.fullmatch(slot)
    steps = [name or int(place) for name, place in _STEP.findall(match[2])] if match else []
    if match is None or isinstance(steps[0], int) or (match[1] == "sample" and not _of_sample(steps)):
        raise ConfigError(
            "CONFIG_RANGE",
            f"a grader cannot read {{{{{slot}}}}}.",
            where=where,
            fix="use {{ item.FIELD }}, {{ sample.output_text }} or {{ sample.output_json.KEY }}.",
        )
    return (match[1], *steps)


def _of_sample(steps: Sequence[Step]) -> bool:
    return steps == ["output_text"] or steps[0] == "output_json"


def _value(path: Sequence[Step], item: Item, output: Output) -> Json:
    root, first, *rest = path
    if root == "item":
        value = item[str(first)]
    else:
        value = output.text if first == "output_text" else output.json
    for step in rest:
        if not isinstance(value, list if isinstance(step, int) else dict):
            raise KeyError(step)
        value = value[step]  # type: ignore[index]
    return value


def _text(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
