"""The keywords of JSON Schema that search for regular expressions, with a time limit.

Some expressions take exponential time on some texts, and schemas of tools come with the data. `regex` stops at a limit;
`re`, which the package `jsonschema` uses, does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import regex

from tunewright.data.messages import Json

SECONDS = 0.2


class SlowPattern(Exception):
    """A pattern takes too long on a text."""


class Validator(Protocol):
    """What a keyword's function needs of `jsonschema`'s validator."""

    def descend(
        self, instance: Json, schema: Json, path: str | None = None, schema_path: str | None = None
    ) -> Iterator[Exception]: ...


# (validator, the keyword's value, the value to check, the schema that has the keyword) -> what is wrong
Check = Callable[[Validator, Json, Json, dict[str, Json]], Iterator[Exception]]


def keywords() -> dict[str, Check]:
    """Replacements for the functions of `jsonschema` that check `pattern`, `patternProperties` and
    `additionalProperties`. They raise `SlowPattern`. What was slow once is not tried again, but the expression is
    on other texts: whether an answer is valid does not depend on those before it."""
    from jsonschema.exceptions import ValidationError

    slow: set[tuple[str, str]] = set()

    def matches(expression: str, text: str) -> bool:
        if (expression, text) in slow:
            raise SlowPattern(expression)
        try:
            return regex.search(expression, text, timeout=SECONDS) is not None
        except TimeoutError:
            slow.add((expression, text))
            raise SlowPattern(expression) from None

    def pattern(validator: Validator, own: Json, value: Json, schema: dict[str, Json]) -> Iterator[Exception]:
        if isinstance(value, str) and isinstance(own, str) and not matches(own, value):
            yield ValidationError("does not match")

    def properties(validator: Validator, own: Json, value: Json, schema: dict[str, Json]) -> Iterator[Exception]:
        for expression, inner in _object(own).items():
            for key, child in _object(value).items():
                if matches(expression, key):
                    yield from validator.descend(child, inner, path=key, schema_path=expression)

    def additional(validator: Validator, own: Json, value: Json, schema: dict[str, Json]) -> Iterator[Exception]:
        named, expressions = (_object(schema.get(key, {})) for key in ("properties", "patternProperties"))
        more = [k for k in _object(value) if k not in named and not any(matches(e, k) for e in expressions)]
        if isinstance(own, dict):
            for key in more:
                yield from validator.descend(_object(value)[key], own, path=key)
        elif own is False and more:
            yield ValidationError("has other properties")

    return {"pattern": pattern, "patternProperties": properties, "additionalProperties": additional}


def _object(value: Json) -> dict[str, Json]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}
