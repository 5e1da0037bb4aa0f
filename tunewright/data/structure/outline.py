"""An inferred schema in words: as a list of fields for people, and as an example value for a model."""

from __future__ import annotations

from collections.abc import Iterator

from tunewright.data.messages import Json

WORDS = {"string": "text", "boolean": "true or false", "array": "list"}


def fields(schema: dict[str, Json], path: str = "", always: bool = False) -> Iterator[tuple[str, str]]:
    """(path, description) of every field, for example ("items[].price", "number, always present")."""
    types = _types(schema)
    scalar = [t for t in types if t not in ("object", "array")]
    properties, items, others = (_inner(schema, key) for key in ("properties", "items", "additionalProperties"))
    if scalar or not (properties or items or others):
        choices = schema.get("enum")
        kind = " or ".join(WORDS.get(t, t) for t in (scalar or types))
        listed = f", one of: {', '.join(map(str, choices))}" if isinstance(choices, list) else ""
        yield path, f"{kind}{listed}{', always present' if always else ''}"
    required = schema.get("required")
    for key, inner in properties.items():
        if isinstance(inner, dict):
            here = isinstance(required, list) and key in required
            yield from fields(inner, f"{path}.{key}" if path else key, here)
    if others:
        yield from fields(others, f"{path}.*" if path else "*")
    if items:
        yield from fields(items, f"{path}[]")


def example(schema: dict[str, Json]) -> Json:
    """A value of the schema's form, whose texts say what they are."""
    types = _types(schema)
    if "object" in types:
        properties, others = _inner(schema, "properties"), _inner(schema, "additionalProperties")
        named = {k: example(v) for k, v in properties.items() if isinstance(v, dict)}
        return {**named, **({"...": example(others)} if others else {})}
    if "array" in types:
        items = _inner(schema, "items")
        return [example(items)] if items else []
    choices = schema.get("enum")
    if isinstance(choices, list):
        return " | ".join(map(str, choices))
    values: dict[str, Json] = {"boolean": True, "integer": 0, "number": 0.5, "null": None}
    return next((values[t] for t in types if t in values and types != ["null", "string"]), "text")


def _types(schema: dict[str, Json]) -> list[str]:
    given = schema.get("type")
    return [str(t) for t in given] if isinstance(given, list) else [str(given)]


def _inner(schema: dict[str, Json], key: str) -> dict[str, Json]:
    value = schema.get(key)
    return value if isinstance(value, dict) else {}
