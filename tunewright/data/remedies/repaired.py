"""A repaired copy of the rows of data.train: one JSON object per line, in the fields that the rows had, and beside it a
list of what was changed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tunewright.core.config import Config
from tunewright.core.errors import DataError, data_error
from tunewright.core.locations import is_local, is_pattern, listed
from tunewright.core.run_folder import write_atomic, write_lines
from tunewright.data import dataset
from tunewright.data.files import paths
from tunewright.data.files.rows import Row
from tunewright.data.formats import FORMATS, RowSettings, conversation
from tunewright.data.formats.row_format import RowFormat
from tunewright.data.messages import Example, Message
from tunewright.data.remedies import labels, prepared
from tunewright.data.remedies.change import Change
from tunewright.data.remedies.prepared import Prepared
from tunewright.data.tool_calls import split_thoughts

# What is repaired unless a setting says otherwise.
DEFAULTS = (
    "data.encoding=auto",
    "data.control=strip",
    "data.empty=drop",
    "data.turns=fix",
    "data.invalid=drop",
)
SUFFIXES = (".jsonl", ".json")
READING = ("format", "columns", "label_names", "instruction")  # settings of data that the copy needs as the files did
TEXTS = ("content", "value", "text")  # fields of a message, or of a part of one, that may be its label
Data = Mapping[str, object]


@dataclass(frozen=True)
class Repaired:
    """``lines``: of the copy; ``changes``: between the files and the copy."""

    lines: tuple[str, ...]
    changes: tuple[Change, ...]


def repair(config: Config) -> Repaired:
    """The rows of data.train after the remedies of the config. Raises DataError with what is still wrong."""
    rows = prepared.prepare(config)
    row_format = next(f for f in FORMATS if f.name == rows.format)
    if _changed_by("data.turns=fix", rows) and row_format.fields != row_format.lists[:1]:
        # The messages are in several fields, to which they cannot be assigned once they are in order.
        rows = prepared.prepare(config.model_copy(update={"data": config.data.model_copy(update={"turns": "error"})}))
    dataset.audited(config, rows)
    how = replace(prepared.row_settings(config), instruction=None)
    reordered, renamed = (_changed_by(setting, rows) for setting in ("data.turns=fix", "data.labels=merge"))
    lines: list[str] = []
    changes = list(rows.changes)
    for example in rows.sides["train"]:
        row = rows.raw[example.where]
        data: Data = _reordered(row, row_format, how) if example.where in reordered else row.data
        data = _relabelled(data, row_format, how, example) if example.where in renamed else data
        plain = _plain(data)
        if repr(plain) != repr(data):
            message = "values that JSON does not have, such as dates and NaN, are written as text or null"
            changes.append(Change(example.where, "DATA_FIELD_TYPE", "tunewright fix", message, dropped=False))
        lines.append(json.dumps(plain, ensure_ascii=False, allow_nan=False))
    return Repaired(tuple(lines), tuple(changes))


def changes_file(out: Path) -> Path:
    return out.with_name(f"{out.name}.changes.jsonl")


def write(repaired: Repaired, out: Path) -> None:
    """Writes the copy and the list of changes, both complete or not at all."""
    write_atomic(out, "".join(f"{line}\n" for line in repaired.lines))
    try:
        write_lines(changes_file(out), [change.to_json() for change in repaired.changes])
    except BaseException:
        out.unlink()
        raise


def still_needed(config: Config) -> list[str]:
    """The settings, as ``key=value``, without which the copy would be read differently from the files."""
    values = {key: getattr(config.data, key) for key in READING}
    changed = {key: value for key, value in values.items() if value != type(config.data).model_fields[key].default}
    return [f"data.{k}={v if k == 'format' else json.dumps(v, ensure_ascii=False)}" for k, v in changed.items()]


def check_output(config: Config, out: Path) -> None:
    """Raises DATA_EXISTS unless copy and changes would be new files that no pattern of the config matches."""
    if out.suffix.lower() not in SUFFIXES:
        raise _not_there(out, "the copy is written as JSON Lines.", f"choose a name that ends in {SUFFIXES[0]}.")
    for file in (changes_file(out), out):
        if os.path.lexists(file):
            raise _not_there(file, "the file exists; nothing is overwritten.", "choose another name, or remove it.")
    for side in prepared.SIDES:
        for name in listed(getattr(config.data, side)):
            pattern = is_local(name) and is_pattern(name) and not os.path.lexists(name)
            for file in (out, changes_file(out)) if pattern else ():
                if paths.would_match(name, file):
                    message = f"the pattern {name} of data.{side} would match this file."
                    raise _not_there(file, message, "write the copy to another folder.")


def _not_there(file: Path, message: str, fix: str) -> DataError:
    return data_error("DATA_EXISTS", message, where=str(file), fix=fix)


def _changed_by(setting: str, rows: Prepared) -> set[str]:
    return {change.where for change in rows.changes if change.setting == setting}


def _reordered(row: Row, row_format: RowFormat, how: RowSettings) -> Data:
    """A row with its messages, which its format has in one list, in a valid order."""
    name = _field(row.data, row_format.lists[0], how)
    messages = conversation.fixed(conversation.read(row.data[name], name, row.where))
    return {**row.data, name: [_written(m) for m in messages]}


def _field(data: Data, name: str, how: RowSettings) -> str:
    """What a row calls a field of its format; empty if it does not have it."""
    wanted = how.columns.get(name, name)
    return next((k for k in data if k == wanted), None) or next((k for k in data if k.lower() == wanted.lower()), "")


def _written(message: Message) -> Data:
    return {**message.to_json(), **({} if message.trained else {"weight": 0})}


def _relabelled(data: Data, row_format: RowFormat, how: RowSettings, example: Example) -> Data:
    """A row with its label written as in the example, wherever its format has it."""
    label = example.target
    parts = {labels.key(part): part for part in label.split(", ")}

    def spelt(value: object) -> object:
        if isinstance(value, list) and value and isinstance(value[-1], dict):  # messages, or parts of one
            texts = {k: spelt(v) if k in TEXTS else v for k, v in value[-1].items()}
            return [*value[:-1], texts]
        if isinstance(value, list):  # choices, or several labels
            several = {labels.key(str(v)) for v in value} == set(parts)
            return [parts[labels.key(str(v))] if several else spelt(v) for v in value]
        if not isinstance(value, str):
            return value
        same = labels.key(split_thoughts(value)[1]) == labels.key(label)
        return labels.respelt(value, label) if same else value

    names = [_field(data, name, how) for name in row_format.answers or row_format.fields[-1:]]
    return {**data, **{name: spelt(data[name]) for name in names if name}}


def _plain(value: object) -> object:
    """A value in terms of JSON: what Parquet has besides becomes text, numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)
