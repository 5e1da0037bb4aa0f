"""JSON Schema: the one that a user gives, or one inferred from answers. Validation is that of the package `jsonschema`.

References to other files or to the network are not followed.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunewright.core import pii
from tunewright.data.messages import Json
from tunewright.data.structure import bounded_patterns
from tunewright.data.structure.bounded_patterns import SlowPattern

if TYPE_CHECKING:
    from jsonschema import FormatChecker

INFERRED = "inferred"
# That there are no other values, or keys, than those seen is claimed only if many were seen and none of them was rare.
FEWEST = 20
FEWEST_OF_EACH = 5
MAX_CHOICES = 20
COMBINING = ("anyOf", "oneOf", "allOf", "not", "if", "then", "else")  # schemas for the value itself, not for a part
MOST_AT_ONCE = 1000
MAP_KEYS = 50  # with more keys, most of which occur once, an object is a map: its keys are data


@dataclass(frozen=True)
class Schema:
    """``source``: the file that it was read from, or "inferred"."""

    source: str
    value: dict[str, Json]

    @functools.cached_property
    def _validator(self) -> Any:
        from jsonschema.validators import extend
        from jsonschema_specifications import REGISTRY

        return extend(_dialect(self.value), bounded_patterns.keywords())(self.value, registry=REGISTRY)

    def accepts(self, value: Json) -> bool:
        try:
            return bool(self._validator.is_valid(value))
        except (RecursionError, SlowPattern):
            return False

    def violation(self, value: Json) -> str | None:
        """What is wrong with a value, without quoting it; None if nothing is."""
        try:
            return self.checked(value)
        except SlowPattern as slow:
            return f"the pattern {_short(str(slow))} takes too long"

    def checked(self, value: Json) -> str | None:
        """`violation`, but raises SlowPattern."""
        from jsonschema.exceptions import best_match

        try:
            error = best_match(self._validator.iter_errors(value))
        except RecursionError:
            return "the schema refers to itself too often"
        if error is None:
            return None
        wrong = error.message if error.validator == "required" else f"{error.validator} {_short(error.validator_value)}"
        return f"{error.json_path}: {wrong}"


def _dialect(value: dict[str, Json]) -> Any:
    """The validator class for the `$schema` of a schema; None if that is unknown."""
    from jsonschema.validators import Draft202012Validator, validator_for

    name = value.get("$schema")
    if name is None:
        return Draft202012Validator
    return validator_for(value, default=None) if isinstance(name, str) else None


def _formats(known: FormatChecker) -> FormatChecker:
    """The known formats, but regular expressions are those of `regex`: nearly all that ECMA-262 has."""
    import regex
    from jsonschema import FormatChecker

    checker = FormatChecker(())
    checker.checkers = {**known.checkers, "regex": (_is_expression, regex.error)}
    return checker


def _is_expression(value: object) -> bool:
    """Raises regex.error unless the value is no string, or a regular expression."""
    import regex

    return not isinstance(value, str) or regex.compile(value) is not None


def _short(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:80]}..."


def keywords(value: dict[str, Json]) -> set[str]:
    """The keys of a schema that restrict a value, or that define what does."""
    return set(value) & {*_dialect({}).VALIDATORS, "$schema", "$defs", "definitions"}


def invalid(value: dict[str, Json]) -> str | None:
    """Why a value is not a JSON Schema that can be used; None if it is one."""
    from jsonschema.exceptions import SchemaError
    from jsonschema_specifications import REGISTRY
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    dialect = _dialect(value)
    if dialect is None:
        return f"$.$schema: the dialect {_short(value['$schema'])} is unknown."
    try:
        dialect.check_schema(value, format_checker=_formats(dialect.FORMAT_CHECKER))
        resolver = REGISTRY.resolver_with_root(DRAFT202012.create_resource(value))
        for inner in _objects(value):
            for reference in (inner.get(key) for key in ("$ref", "$dynamicRef", "$recursiveRef")):
                if isinstance(reference, str):
                    resolver.lookup(reference)
            if {"unevaluatedProperties", "patternProperties"} <= set(inner):
                return "unevaluatedProperties beside patternProperties is not supported."
        if (at_once := _at_once(value, lambda name: resolver.lookup(name).contents, {}, ())) > MOST_AT_ONCE:
            return f"{at_once:,} schemas of anyOf, oneOf, allOf and $ref apply to one value, which takes too long."
        Schema(INFERRED, value)._validator.is_valid({})
    except SchemaError as error:
        return f"{error.json_path}: {error.message[:200]}."
    except Unresolvable as error:
        return f"the reference {error.ref!r} leads to nothing in this file."
    except RecursionError:
        return "it refers to itself without end."
    except SlowPattern:
        pass
    return None


def _at_once(schema: Json, look_up: Callable[[str], Json], known: dict[int, int], within: tuple[int, ...]) -> int:
    """How many schemas are tried on one value: those that combine are added, of those for its parts the most counts."""
    if not isinstance(schema, dict) or id(schema) in within:
        return 0
    if id(schema) not in known:
        inner = (*within, id(schema))
        combined = [s for key in COMBINING for s in _schemas(schema.get(key))]
        if isinstance(reference := schema.get("$ref"), str):
            combined += _schemas(look_up(reference))
        parts = [s for key, value in schema.items() if key not in (*COMBINING, "$defs") for s in _schemas(value)]
        parts += [s for value in schema.values() if isinstance(value, dict) for s in _schemas(list(value.values()))]
        most = max((_at_once(s, look_up, known, inner) for s in parts), default=0)
        known[id(schema)] = 1 + sum(_at_once(s, look_up, known, inner) for s in combined) + most
    return known[id(schema)]


def _schemas(value: Json) -> list[dict[str, Json]]:
    """The schemas that the value of a keyword is, or lists."""
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, dict)]


def _objects(value: Json) -> Iterator[dict[str, Json]]:
    """Every object in a value."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(inner)


# -- inference


def infer(values: Sequence[Json]) -> dict[str, Json]:
    """What the values have in common: types, keys that are always present, and the choices of texts that repeat."""
    types = sorted({_type(v) for v in values})
    if "number" in types and "integer" in types:
        types.remove("integer")
    schema: dict[str, Json] = {"type": types[0] if len(types) == 1 else list[Json](types)}
    texts = Counter(v for v in values if isinstance(v, str))
    few = set(types) <= {"string", "null"} and len(texts) <= MAX_CHOICES and _closed(texts)
    if few and not any(map(pii.kinds, texts)):  # choices are shown
        schema["enum"] = [*sorted(texts), *([None] if "null" in types else [])]
    schema |= _inferred_object([v for v in values if isinstance(v, dict)])
    items = [item for v in values if isinstance(v, list) for item in v]
    return {**schema, **({"items": infer(items)} if items else {})}


def _closed(counts: Counter[str]) -> bool:
    """Whether other values than these are unlikely."""
    return counts.total() >= FEWEST and min(counts.values()) >= FEWEST_OF_EACH


def _inferred_object(objects: Sequence[dict[str, Json]]) -> dict[str, Json]:
    if not objects:
        return {}
    counts = Counter(key for v in objects for key in v)
    once = sum(n == 1 for n in counts.values())
    if len(counts) > MAP_KEYS and once > len(counts) / 2:
        return {"additionalProperties": infer([inner for v in objects for inner in v.values()])}
    properties: dict[str, Json] = {key: infer([v[key] for v in objects if key in v]) for key in counts}
    claims: dict[str, Json] = {"properties": properties}
    if required := [key for key, n in counts.items() if n == len(objects)]:
        claims["required"] = list[Json](required)
    if len(objects) >= FEWEST and _closed(counts):
        claims["additionalProperties"] = False
    return claims


def _type(value: Json) -> str:
    if isinstance(value, bool):
        return "boolean"
    names = {str: "string", int: "integer", float: "number", dict: "object", list: "array", type(None): "null"}
    return "integer" if isinstance(value, float) and value.is_integer() else names[type(value)]
