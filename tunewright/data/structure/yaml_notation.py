"""YAML as a notation of structured values, and which texts are certainly YAML: prose with colons and bullets is not."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tunewright.core.yaml12 import plain_value
from tunewright.data.messages import Json
from tunewright.data.structure.values import Container, Notation, container, unfenced

_KEY = r"[A-Za-z_][\w.-]*"
_ENTRY = re.compile(rf"^[ ]*(?:- +)*{_KEY}:(?:[ ]|$)", re.M)
_START = re.compile(rf"\s*(?:---\s*\n)?(?:- +)*{_KEY}:(?:\s|$)")
_FENCE = re.compile(r"```(?:ya?ml)?[ \t]*\n(.*?)\n?```", re.S)
SENTENCE_WORDS = 15


def strict_yaml(text: str) -> Container | None:
    """The mapping or list that a YAML 1.2 text is."""
    try:
        value = container(plain_value(text))
    except (ValueError, RecursionError):
        return None
    return value if all(isinstance(key, str) for key in _keys(value)) else None


def lenient_yaml(text: str, like: Container) -> Container | None:
    """The mapping or list in the first fence, or from the first line that looks like YAML, up to a blank line if what
    follows is not YAML."""
    fence, entry = _FENCE.search(text), _ENTRY.search(text)
    from_entry = text[entry.start() :] if entry else text
    for candidate in (*([fence[1]] if fence else []), from_entry, re.split(r"\n\s*\n", from_entry)[0], text):
        value = strict_yaml(candidate)
        if type(value) is type(like):
            return value
    return None


def is_certainly_yaml(text: str) -> bool:
    """Whether a text is a mapping of several keys, or a list of such mappings, whose keys are identifiers and whose
    values, unless they are nested, are not sentences."""
    text = unfenced(text)
    if not _START.match(text) or len(_ENTRY.findall(text)) < 2:
        return False
    value = strict_yaml(text)
    mappings = value if isinstance(value, list) else [value]
    return all(isinstance(v, dict) and len(v) > 1 and _is_record(v) for v in mappings)


def keys(text: str) -> set[str]:
    """The keys of the outermost mapping or mappings."""
    value = strict_yaml(unfenced(text))
    return {k for v in (value if isinstance(value, list) else [value]) if isinstance(v, dict) for k in v}


def _is_record(mapping: dict[str, Json]) -> bool:
    nested = any(isinstance(v, dict | list) for v in mapping.values())
    named = all(re.fullmatch(_KEY, str(key)) for key in _keys(mapping))
    return named and (nested or not any(isinstance(v, str) and _is_sentence(v) for v in mapping.values()))


def _keys(value: Json) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keys(inner)


def _is_sentence(text: str) -> bool:
    words = len(text.split())
    return words > SENTENCE_WORDS or (words > 1 and re.search(r"[.!?…][\"'”’)]*$", text.strip()) is not None)


YAML = Notation("YAML", strict_yaml, lenient_yaml)
