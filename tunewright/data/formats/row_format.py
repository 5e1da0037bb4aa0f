"""Rows -> Examples: what a row format is, which format rows have, and reading them all.

A format knows its fields; the readers of fields raise a DataError that names the row, and `parse` collects them all.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tunewright.core.errors import DataError, Problem, data_error
from tunewright.data.files.rows import Control
from tunewright.data.formats import notation, unsupported
from tunewright.data.formats.fields import SYNTHETIC, author, cleaned_row, decoded
from tunewright.data.messages import Example, Json
from tunewright.data.sources import Row

Data = dict[str, Json]


@dataclass(frozen=True)
class RowSettings:
    """How rows are read. ``format``: a name, or "auto"; ``columns``: standard field -> the user's field;
    ``instruction``: the system message of rows that have none; ``label_names``: names of labels that are numbers.
    ``fix_turns``: join messages of one role, and cut conversations that do not end with an answer; ``drop``: codes of
    problems for which a row is dropped instead of being an error; ``as_asked``: the user set the format, so that fields
    that show another kind of row are ignored. ``preference``: whether rows must have a chosen and a rejected answer,
    ``rated``: whether they must have these or one answer with a rating, unless the format is set; ``rewards``: whether
    they have a prompt and no answer; ``embedding``: whether they are a query and documents; ``tags``: whether they have
    words, each with a tag; ``numbers``: whether labels are numbers; ``margins``: whether pairs may have a margin.
    ``control``: what becomes of control
    characters and lone surrogates in JSON that a field contains as a string."""

    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    instruction: str | None = None
    label_names: Sequence[str] = ()
    fix_turns: bool = False
    drop: frozenset[str] = frozenset()
    as_asked: bool = False
    preference: bool = False
    rated: bool = False
    numbers: bool = False
    rewards: bool = False
    margins: bool = False
    embedding: bool = False
    tags: bool = False
    control: Control = "error"


Build = Callable[[Row, RowSettings], Example]


class Fields(Data):
    """The fields of a row, which know the ``used`` ones: those whose values were asked for."""

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> Json:
        self.used.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Json = None) -> Json:  # type: ignore[override]
        self.used.add(name)
        return super().get(name, default)


@dataclass(frozen=True)
class RowFormat:
    """A row has this format if it has all ``fields``, none of ``excludes``, and ``condition`` is true of it.

    ``lists``: the fields that are lists of messages; ``answers``: those that have the answer, if it is not the last of
    ``fields``. ``build``: reads a row that has all fields, and others if they have a value; raises DataError.
    ``preference``: whether rows have a chosen and a rejected answer; ``rated``: whether they have a rating;
    ``rewards``: whether they have no answer; ``embedding``: whether they are a query and documents; ``tags``: whether
    each word has a tag.
    """

    name: str
    fields: tuple[str, ...]
    build: Build
    excludes: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    condition: Callable[[Data], bool] | None = None
    preference: bool = False
    rated: bool = False
    rewards: bool = False
    embedding: bool = False
    tags: bool = False

    def fits(self, data: Data) -> bool:
        given = all(f in data for f in self.fields) and not any(f in data for f in self.excludes)
        return given and (self.condition is None or self.condition(data))

    def read(self, row: Row, how: RowSettings) -> Example:
        """The example of a row. Raises DataError."""
        for name in self.fields:
            if name not in row.data:
                close = difflib.get_close_matches(name, list(row.data), n=1, cutoff=0.6)
                fix = f"rename {close[0]!r}." if close else "add it, or map another field to it with data.columns."
                message = f"the field {name!r} of a {self.name} row is missing; the row has {list(row.data)[:8]}."
                raise data_error("DATA_FIELD_MISSING", message, where=row.where, fix=fix)
        example = self.build(row, how)
        return replace(example, author=author(row)) if SYNTHETIC in row.data else example

    def unused(self, data: Fields) -> set[str]:
        """Fields of a row, and of its messages, that have a value but that `read` did not use."""
        fields = {k for k, v in data.items() if v not in notation.EMPTY and k not in data.used}
        items = [(n, item) for n in self.lists for item in self._messages(data.get(n)) if isinstance(item, dict)]
        late = {f"{self.lists[-1]} after the last answer"} if self._ends_unanswered(items) else set()
        return fields | late | {f"{name}[].{k}" for name, item in items for k in notation.unread(item)}

    def _messages(self, value: Json) -> list[Json]:
        """The messages of a field. A prompt or a completion that is a string is a text, and a completion may be a list
        of something else."""
        value = in_string(value) if len(self.lists) == 1 else value
        return value if isinstance(value, list) and (len(self.lists) == 1 or notation.is_messages(value)) else []

    def _ends_unanswered(self, items: list[tuple[str, Data]]) -> bool:
        role = notation.role_of(items[-1][1]) if items and items[-1][0] == self.lists[-1] else "assistant"
        return self.condition is None and role in ("system", "user", "tool")


@dataclass(frozen=True)
class Parsed:
    """The valid examples of one file, in order; ``unused`` maps a field that is not used to the number of rows that
    have it. ``dropped``: the problems of the rows that were left out; ``fixed``: those that `fix_turns` or `control`
    solved."""

    format: str
    examples: tuple[Example, ...]
    unused: dict[str, int]
    dropped: tuple[Problem, ...] = ()
    fixed: tuple[Problem, ...] = ()


def parse(rows: Sequence[Row], formats: Sequence[RowFormat], how: RowSettings) -> Parsed:
    """All rows as Examples. Raises DataError with every problem of every row, unless the row is to be dropped."""
    candidates = [f for f in formats if how.format == f.name or (how.format == "auto" and _is_wanted(f, how))]
    if how.format != "auto" and _kind(candidates[0]) != _kind(how):
        fix = (
            "leave data.format at auto, or choose another train.method (grpo is for prompts, embed for pairs of texts, "
            "tag for words with tags)."
        )
        message = f"data.format={how.format} is not for rows of this training method."
        raise data_error("DATA_FORMAT_MISMATCH", message, where="data.format", fix=fix)
    _check_columns(rows, how.columns)
    rows = _with_values(_renamed(rows, how.columns))
    rows = rows if any(f.fits(r.data) for f in candidates for r in rows) else _in_lower_case(rows, candidates)
    reader = functools.partial(_reader, formats, how)
    wanted = unsupported.Wanted(how.preference or how.rated or any(_kind(how)), how.rated or how.embedding)
    refused = {} if how.as_asked or how.tags else unsupported.problems(rows, how.columns, reader, wanted)
    readable = [row for row in rows if row.where not in refused]
    if not readable:
        raise DataError(list(refused.values()))
    row_format = detect(readable, candidates) if how.format == "auto" else candidates[0]
    problems: list[Problem] = []
    dropped: list[Problem] = []
    fixed: list[Problem] = []
    examples: list[Example] = []
    unused: Counter[str] = Counter()
    for row in rows:
        try:
            if row.where in refused:
                raise DataError([refused[row.where]])
            fields = Fields(row.data)
            example, solved = _read(row_format, Row(fields, row.where), how)
            examples.append(example)
            fixed += solved
            unused.update(row_format.unused(fields))
        except DataError as error:
            droppable = all(p.code in how.drop for p in error.problems)
            (dropped if droppable else problems).extend(map(_or_drop, error.problems))
    if problems:
        raise DataError(problems)
    return Parsed(row_format.name, tuple(examples), dict(unused), tuple(dropped), tuple(fixed))


def _is_wanted(row_format: RowFormat, how: RowSettings) -> bool:
    """Whether rows of this format are looked for."""
    if how.rated:
        return row_format.rated or row_format.preference
    wanted = how.preference, *_kind(how)
    return (row_format.preference, *_kind(row_format)) == wanted and not row_format.rated


def _kind(of: RowFormat | RowSettings) -> tuple[bool, bool, bool]:
    """What only rows of one training method are."""
    return of.rewards, of.embedding, of.tags


def _reader(formats: Sequence[RowFormat], how: RowSettings, row: Row, columns: Mapping[str, str]) -> str:
    """The name of the first format that reads a row with such columns, these among its fields; empty if none does."""
    (renamed,) = _renamed([row], columns)
    for row_format in formats:
        if _kind(row_format) == _kind(how) and row_format.fits(renamed.data) and set(columns) <= set(row_format.fields):
            with contextlib.suppress(DataError):
                row_format.read(renamed, how)
                return row_format.name
    return ""


def _read(row_format: RowFormat, row: Row, how: RowSettings) -> tuple[Example, tuple[Problem, ...]]:
    """The example of a row, and the problems that `fix_turns` and `control` solved in it."""
    try:
        return row_format.read(row, replace(how, fix_turns=False)), ()
    except DataError as error:
        bad = tuple(p for p in error.problems if p.code in ("DATA_CONTROL_CHAR", "DATA_UNICODE"))
        if bad and how.control != "error":
            fields = Fields(cleaned_row(row, how.control).data)
            fields.used = row.data.used if isinstance(row.data, Fields) else fields.used
            example, solved = _read(row_format, Row(fields, row.where), replace(how, control="error"))
            return example, (*bad, *solved)
        if not how.fix_turns:
            raise
        return row_format.read(row, how), error.problems


def in_string(value: Json) -> Json:
    """A value, or the list that a string contains as JSON."""
    try:
        return decoded(value, "", "") if isinstance(value, str) and value.lstrip()[:1] == "[" else value
    except DataError:
        return value


def _or_drop(problem: Problem) -> Problem:
    """A problem whose fix also names the setting that leaves such rows out, unless it names one already."""
    if "data." in problem.fix:
        return problem
    fix = problem.fix.removesuffix(".") + ("" if problem.fix.endswith("?") else ",")
    setting = " or set data.invalid=drop to leave such rows out."
    return replace(problem, fix=fix + (setting.replace(" or", " Or") if fix.endswith("?") else setting))


def _renamed(rows: Sequence[Row], columns: Mapping[str, str]) -> list[Row]:
    """The rows with the standard names of their fields. A field that had such a name is replaced."""
    if not columns:
        return list(rows)
    standard = {column: name for name, column in columns.items()}
    return [
        Row({standard.get(k, k): v for k, v in r.data.items() if k in standard or k not in columns}, r.where)
        for r in rows
    ]


def _check_columns(rows: Sequence[Row], columns: Mapping[str, str]) -> None:
    """Raises DATA_FIELD_MISSING for a column of data.columns that no row has."""
    for name, column in columns.items():
        if rows and not any(column in row.data for row in rows):
            message = f"no row has the field {column!r}, which data.columns maps to {name!r}; the first has"
            message = f"{message} {list(rows[0].data)[:8]}."
            raise data_error("DATA_FIELD_MISSING", message, where=rows[0].where, fix="correct data.columns.")


def _with_values(rows: Sequence[Row]) -> list[Row]:
    """The rows without the fields that are null in all of them: tables of mixed origin have such columns."""
    used = {name for row in rows for name, value in row.data.items() if value is not None}
    return [Row({k: v for k, v in row.data.items() if k in used}, row.where) for row in rows]


def _in_lower_case(rows: Sequence[Row], formats: Sequence[RowFormat]) -> Sequence[Row]:
    """The rows with the names of their fields in lower case, if a format then fits one of them."""
    lower = [Row({k.lower(): v for k, v in row.data.items()}, row.where) for row in rows]
    unique = all(len(a.data) == len(b.data) for a, b in zip(rows, lower, strict=True))
    return lower if unique and any(f.fits(r.data) for f in formats for r in lower) else rows


def detect(rows: Sequence[Row], formats: Sequence[RowFormat]) -> RowFormat:
    """The format of all rows: of those that fit a row, the first. Raises DATA_MIXED_SCHEMA or DATA_FIELD_MISSING."""
    votes: dict[str, list[Row]] = {}
    for row in rows:
        fitting = next((f for f in formats if f.fits(row.data)), None)
        if fitting is not None:
            votes.setdefault(fitting.name, []).append(row)
    if len(votes) > 1:
        ordered = sorted(votes.items(), key=lambda kv: -len(kv[1]))
        parts = ", ".join(f"{len(v)} {k} (first: {v[0].where})" for k, v in ordered)
        raise data_error(
            "DATA_MIXED_SCHEMA",
            f"the rows have different formats: {parts}.",
            where=rows[0].where,
            fix=f"set data.format={ordered[0][0]}, and data.invalid=drop to leave the other rows out.",
        )
    if votes:
        return next(f for f in formats if f.name in votes)
    raise _unknown(rows[0], formats)


def _unknown(row: Row, formats: Sequence[RowFormat]) -> DataError:
    """The error for rows of none of the formats, from the first of them."""
    fields = list(row.data)
    known = [f for row_format in formats for f in row_format.fields]
    close = [
        (f, m[0]) for f in fields if (m := difflib.get_close_matches(f.lower(), known, n=1, cutoff=0.7)) and m[0] != f
    ]
    table = " The first line of a CSV file names the columns." if re.search(r"\.[ct]sv\b", row.where) else ""
    guess = f" Did you mean {close[0][1]!r} for {close[0][0]!r}?" if close else ""
    what, names = "no known format", "prompt: your_field, completion: other_field"
    if any(f.rated for f in formats):
        what, names = "no format of rated answers", "prompt: your_field, completion: other_field, label: third_field"
    elif all(f.preference for f in formats):
        what, names = "no preference format", "chosen: your_field, rejected: other_field"
    if all(f.tags for f in formats):
        what, names = "no format of words with tags", "tokens: your_field, tags: other_field"
    if all(f.rewards for f in formats):
        what, names = "no format of prompts", "prompt: your_field"
    if all(f.embedding for f in formats):
        what, names = "no format of a query and a document", "anchor: your_field, positive: other_field"
    pair = "train.method=embed trains on pairs of texts; otherwise " if {"anchor", "positive"} <= set(fields) else ""
    return data_error(
        "DATA_FIELD_MISSING",
        f"{what} has the fields {fields[:8]}.{guess}",
        where=row.where,
        fix=f"{pair}rename them, or map them: data.columns='{{{names}}}'.{table}",
    )
