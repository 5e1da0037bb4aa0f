"""The keywords of JSON Schema that search for regular expressions, with a time limit.

Some expressions take exponential time on some texts, and schemas of tools come with the data. `regex` stops at a limit;
`re`, which the package `jsonschema` uses, does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import regex

SECONDS = 0.2
Check = Callable[[Any, Any, Any, Any], Iterator[Any]]


class SlowPattern(Exception):
    """A pattern takes too long on a text."""


def keywords() -> dict[str, Check]:
    """Replacements for the functions of `jsonschema` that check `pattern`, `patternProperties` and
    `additionalProperties`. They raise `SlowPattern`; an expression that was slow once is not tried again."""
    from jsonschema.exceptions import ValidationError

    slow: set[str] = set()

    def matches(pattern: str, text: str) -> bool:
        if pattern in slow:
            raise SlowPattern(pattern)
        try:
            return regex.search(pattern, text, timeout=SECONDS) is not None
        except TimeoutError:
            slow.add(pattern)
            raise SlowPattern(pattern) from None

    def pattern(validator: Any, expression: str, value: Any, schema: Any) -> Iterator[Any]:
        if isinstance(value, str) and not matches(expression, value):
            yield ValidationError("does not match")

    def pattern_properties(validator: Any, inner: dict[str, Any], value: Any, schema: Any) -> Iterator[Any]:
        for expression, subschema in inner.items():
            for key in [k for k in value if matches(expression, k)] if isinstance(value, dict) else ():
                yield from validator.descend(value[key], subschema, path=key, schema_path=expression)

    def additional_properties(validator: Any, inner: Any, value: Any, schema: Any) -> Iterator[Any]:
        if not isinstance(value, dict):
            return
        expressions = schema.get("patternProperties", {})
        more = [
            k for k in value if k not in schema.get("properties", {}) and not any(matches(e, k) for e in expressions)
        ]
        if isinstance(inner, dict):
            for key in more:
                yield from validator.descend(value[key], inner, path=key)
        elif inner is False and more:
            yield ValidationError("has other properties")

    return {
        "pattern": pattern,
        "patternProperties": pattern_properties,
        "additionalProperties": additional_properties,
    }
