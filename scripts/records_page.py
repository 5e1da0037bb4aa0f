"""Write docs/records.md and docs/records.schema.json, the files of a run folder, from the types of the records."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tunewright.core import records

HEAD = "<!-- written by scripts/make_docs.py; do not edit -->\n\n"
INTRO = """# The files of a run folder

Every JSON file of a run is a record: a frozen type in `tunewright.core.records` with a schema version. A file that
does not match its type is rejected with `RUN_DAMAGED`, which names the file and the field. The same as a JSON schema
(2020-12): [records.schema.json](records.schema.json).

Not records: `config.yaml` ([config.md](config.md)), weights (safetensors), a checkpoint's `COMPLETE` (file name ->
sha256), the lock and its `.owner`, PEFT's `adapter_config.json`, and what transformers writes to `merged/`.

- Every record also has an integer `version`; a file without it is version 1. JSON Lines omit it while it is 1.
- *optional*: the key is absent if there is no value. *or null*: the key is always present.
- The file of an optional stage that did not run contains `NotMeasured`.
- An interval is `[low, high]`, at confidence 1 - `prove.significance` unless noted otherwise.
"""
TAGS = {"measured", "available"}  # constants that only distinguish the members of a union


class Column(NamedTuple):
    """One field of a record: a row of its table."""

    name: str
    kind: str
    meaning: str


def records_page() -> str:
    """docs/records.md."""
    schema = records.schema()
    definitions, files = _objects(schema["$defs"]), _objects(schema["files"])
    lines = [HEAD + INTRO, "| file | content | |", "|---|---|---|"]
    for kind in records.FILES:
        named = _kind(files[kind.pattern])
        each = f"one {named} per line" if kind.lines else named
        lines.append(f"| `{kind.pattern}` | {each} | {kind.meaning} |")
    for name in _in_order(definitions, files):
        lines += _section(name, definitions[name])
    return "\n".join(lines) + "\n"


def records_schema() -> str:
    """docs/records.schema.json."""
    return json.dumps(records.schema(), indent=1, ensure_ascii=False) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "docs/records.md": records_page,
    "docs/records.schema.json": records_schema,
}


def _section(name: str, definition: dict[str, object]) -> list[str]:
    kind = getattr(records, name, None)
    text = inspect.cleandoc(kind.__doc__ if kind else str(definition.get("description", ""))).replace("``", "`")
    lines = [f"\n## {name}\n", text]
    columns = list(_columns(definition))
    if any(c.meaning for c in columns):
        lines += ["", "| field | type | meaning |", "|---|---|---|"]
        lines += [f"| `{c.name}` | {c.kind} | {c.meaning} |" for c in columns]
    return lines


def _columns(definition: dict[str, object]) -> Iterator[Column]:
    for name, field in _objects(definition.get("properties", {})).items():
        if name == "version" or (name in TAGS and "const" in field):
            continue
        optional = "default" in field and field["default"] is None
        kind = _kind(field, without_null=optional)
        meaning = str(field.get("description", "")).replace("|", "\\|")
        yield Column(name, f"{kind}, optional" if optional else kind, meaning)


def _kind(field: object, without_null: bool = False) -> str:
    """A JSON schema in words, with links to other records."""
    assert isinstance(field, dict)
    if "$ref" in field:
        name = str(field["$ref"]).rsplit("/", 1)[-1]
        return "any JSON" if name == "JsonValue" else f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf"):
        if several in field:
            kinds = [_kind(k) for k in field[several]]
            return " or ".join(k for k in kinds if not (without_null and k == "null"))
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "prefixItems" in field:
        return f"[{', '.join(_kind(item) for item in field['prefixItems'])}]"
    if field.get("type") == "array":
        return f"list of {_kind(field['items'])}"
    if field.get("type") == "object":
        return f"object of {_kind(field['additionalProperties'])}" if "additionalProperties" in field else "object"
    return str(field.get("type", "any JSON"))


def _in_order(definitions: dict[str, dict[str, object]], files: dict[str, dict[str, object]]) -> list[str]:
    """Every definition once, in the order of the files; the parts of a record come right after it."""
    order: dict[str, None] = {}

    def visit(value: object) -> None:
        if isinstance(value, list):
            for item in value:
                visit(item)
        if isinstance(value, dict):
            name = str(value.get("$ref", "")).rsplit("/", 1)[-1]
            if name in definitions and name not in order and name != "JsonValue":
                order[name] = None
                visit(definitions[name] if name != "Plan" else None)  # docs/config.md describes its fields
            for item in value.values():
                visit(item)

    for file in files.values():
        visit(file)
    return list(order)


def _objects(value: object) -> dict[str, dict[str, object]]:
    assert isinstance(value, dict)
    return value
