"""A YAML 1.2 reader that records the line of every key; tags, anchors, aliases and deep nesting are rejected."""

from __future__ import annotations

import functools
import re
import threading
from pathlib import Path
from typing import Any

from tunewright.core import small_files
from tunewright.core.errors import ConfigError

MAX_BYTES = 256 * 1024
_LOADING = threading.Lock()  # the loader is made once, and a server has several threads


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """(mapping, dotted key -> file:line) of a config file. Raises ConfigError."""
    try:
        raw = small_files.read_bytes(path, MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            "CONFIG_NOT_FOUND", f"cannot read the config: {error.strerror}.", where=str(path), fix="check the path."
        ) from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(
            "CONFIG_TOO_LARGE",
            "a config must not exceed 256 KiB.",
            where=str(path),
            fix="if this is a data file, give it the extension .jsonl or .csv.",
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            "CONFIG_SYNTAX", f"byte {error.start} is not valid UTF-8.", where=str(path), fix="save the file as UTF-8."
        ) from None
    value, places = parse_yaml(text, str(path))
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise ConfigError(
            "CONFIG_SYNTAX",
            f"a config must be a mapping of keys, not a {type(value).__name__}.",
            where=str(path),
            fix="start with a setting, e.g. `model: smollm2-135m`.",
        )
    return value, places


def parse_yaml(text: str, where: str) -> tuple[Any, dict[str, str]]:
    """(value, dotted key -> file:line). `1e-4` is a number and `no` a string; a duplicate key is an error."""
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import ConstructorError, DuplicateKeyError
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent

    def place(mark: Any) -> str:
        return where if mark is None or where == "command line" else f"{where}:{mark.line + 1}"

    try:
        depth = 0
        for event in YAML(typ="safe", pure=True).parse(text):
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > 20:
                raise ConfigError(
                    "CONFIG_TOO_LARGE",
                    "nested too deeply.",
                    where=place(event.start_mark),
                    fix="settings are at most three levels deep.",
                )
            if isinstance(event, AliasEvent) or getattr(event, "anchor", None) is not None:
                raise ConfigError(
                    "CONFIG_UNSAFE_TAG",
                    "anchors and aliases are not allowed.",
                    where=place(event.start_mark),
                    fix="write the value out.",
                )
            if isinstance(event, NodeEvent) and getattr(event, "tag", None) is not None and "!" in str(event.tag):
                raise ConfigError(
                    "CONFIG_UNSAFE_TAG",
                    f"the tag {event.tag} is not allowed.",
                    where=place(event.start_mark),
                    fix="remove the tag.",
                )
        node = YAML(typ="safe", pure=True).compose(text)
        with _LOADING:
            value = _loader().load(text)
    except DuplicateKeyError as error:
        key = str(error.problem).split('"')[1] if '"' in str(error.problem) else "?"
        raise ConfigError(
            "CONFIG_DUPLICATE_KEY", f"`{key}` occurs twice.", where=place(error.problem_mark), fix="keep one of them."
        ) from None
    except ConstructorError as error:
        raise ConfigError(
            "CONFIG_UNSAFE_TAG", str(error.problem), where=place(error.problem_mark), fix="remove the tag."
        ) from None
    except MarkedYAMLError as error:
        raise ConfigError(
            "CONFIG_SYNTAX",
            str(error.problem or error.context),
            where=place(error.problem_mark or error.context_mark),
            fix="indent sections by two spaces and write `key: value` with a space after the colon.",
        ) from None
    except (YAMLError, ValueError) as error:
        raise ConfigError(
            "CONFIG_SYNTAX", str(error).splitlines()[0], where=where, fix="write it as YAML 1.2: `key: value`."
        ) from None
    places: dict[str, str] = {}
    _walk(node, "", places, where)
    return value, places


def plain_value(text: str) -> object:
    """The value of a text without tags, anchors and aliases. Raises ValueError if it is anything else."""
    from ruamel.yaml.error import YAMLError

    if _REFERENCE.search(text):
        raise ValueError
    try:
        value: object = _loader().load(text)
    except YAMLError:
        raise ValueError from None
    return value


_REFERENCE = re.compile(r"(?:^|[\s\[{,])[&*!][^\s&*!]")


@functools.cache
def _loader() -> Any:
    """A safe loader that reads dates as strings: the YAML 1.2 core schema has no timestamps."""
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import SafeConstructor

    class Constructor(SafeConstructor):  # type: ignore[misc]
        pass

    Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)
    loader = YAML(typ="safe", pure=True)
    loader.Constructor = Constructor
    return loader


def _walk(node: Any, prefix: str, places: dict[str, str], where: str) -> None:
    if node is None or not isinstance(node.value, list):
        return
    for pair in node.value:
        if isinstance(pair, tuple):
            line = f"{where}:{pair[0].start_mark.line + 1}"
            if pair[0].tag != "tag:yaml.org,2002:str":
                raise ConfigError(
                    "CONFIG_SYNTAX",
                    "keys must be strings.",
                    where=line,
                    fix="write `key: value`, or put the key in quotes.",
                )
            key = f"{prefix}{pair[0].value}"
            places[key] = line
            _walk(pair[1], f"{key}.", places, where)
