"""Structured values, whatever notation they are written in, and JSON as one such notation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from tunewright.data.messages import Json

Scalar: TypeAlias = str | int | float | bool | None
Container: TypeAlias = dict[str, Json] | list[Json]

MAX_DEPTH = 50  # deeper values are not read; answers to real questions have a handful of levels


@dataclass(frozen=True)
class Notation:
    """A way to write a structured value. ``strict``: the object or list that a text is, None if it is anything else.
    ``lenient``: the one that a generated text contains, of the kind of the given value (object or list)."""

    name: str
    strict: Callable[[str], Container | None]
    lenient: Callable[[str, Container], Container | None]


def strict_json(text: str) -> Container | None:
    """The JSON object or array that a text is."""
    try:
        value: Json = _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None
    return container(value)


def lenient_json(text: str, like: Container) -> Container | None:
    """The first JSON value of the kind of ``like`` in a text: a fence or a sentence around a right answer does not make
    it wrong. Where a list is expected, objects without brackets around them are its items."""
    value = strict_json(text)
    if isinstance(like, dict):
        return value if isinstance(value, dict) else next(_objects(text), None)
    return value if isinstance(value, list) else _list(text)


def _objects(text: str) -> Iterator[dict[str, Json]]:
    """The JSON objects that begin at any brace, so also those within others."""
    for brace in re.finditer(r"\{", text):
        value = _value_at(text, brace.start())
        if value is not None and isinstance(value[0], dict):
            yield value[0]


def _list(text: str) -> list[Json] | None:
    """The first array that is not part of another value, else the objects that are not; None where an array does not
    end, because the answer was cut."""
    objects: list[Json] = []
    at, cut = 0, False
    while (bracket := _BRACKET.search(text, at)) is not None:
        value = _value_at(text, bracket.start())
        if value is None:
            cut = cut or bracket[0] == "["
            at = bracket.end()
        elif isinstance(value[0], list):
            return None if cut else value[0]
        else:
            objects += [value[0]] if value[0] else []
            at = value[1]
    return objects if objects and not cut else None


def _value_at(text: str, at: int) -> tuple[Container, int] | None:
    """The JSON object or array that begins at a place, and where it ends."""
    try:
        value, end = _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None
    read = container(value)
    return None if read is None else (read, end)


def _not_json(text: str) -> NoReturn:
    raise ValueError(text)


_DECODER = json.JSONDecoder(parse_constant=_not_json)  # Python also reads NaN and Infinity, which are not JSON
_BRACKET = re.compile(r"[\[{]")


def container(value: object) -> Container | None:
    """``value`` if it is an object or a list, and not nested too deeply."""
    if not isinstance(value, dict | list):
        return None
    level: list[Json] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for v in level
            if isinstance(v, dict | list)
            for child in (v.values() if isinstance(v, dict) else v)
            if isinstance(child, dict | list)
        ]
        if not level:
            return value
    return None


def unfenced(text: str) -> str:
    """The inside of a text that is one fenced block and nothing else; otherwise the text."""
    block = re.fullmatch(r"\s*```[\w-]*[ \t]*\n(.*?)\n?[ \t]*```\s*", text, re.S)
    return block[1] if block and not re.search(r"^[ \t]*```", block[1], re.M) else text


JSON = Notation("JSON", strict_json, lenient_json)
