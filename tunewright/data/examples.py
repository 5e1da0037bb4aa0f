"""Rows -> Examples: what an example is, and how a row of each format becomes one.

    chat         {"messages": [{"role": "system|user|assistant", "content": "..."}, ...]}
    completion   {"prompt": "...", "completion": "..."}
    instruction  {"instruction": "...", "input": "..." (may be absent or empty), "output": "..."}
    label        {"text": "...", "label": "..."}
    text         {"text": "..."}, or a document of a folder

The first four become a Chat (they differ only in notation), the last a Text. `FORMATS` has one entry per format.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tunewright.core.errors import DataError, Problem, data_error
from tunewright.data.sources import Row


@dataclass(frozen=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True)
class Chat:
    """A valid conversation that ends with an assistant turn. ``where`` is the place of its row, as ``file:line``."""

    messages: tuple[Message, ...]
    where: str

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the final answer."""
        return self.messages[:-1]

    @property
    def target(self) -> str:
        """The final answer."""
        return self.messages[-1].content

    @property
    def question(self) -> str:
        """What identifies the row: the prompt without the (usually shared) system message."""
        return "\n".join(m.content for m in self.prompt if m.role != "system")

    @property
    def text(self) -> str:
        """Everything in the row, the system message included."""
        return "\n".join(m.content for m in self.messages)


@dataclass(frozen=True)
class Text:
    """A document. Every token is trained on; there is no prompt and hence no answer."""

    text: str
    where: str

    @property
    def messages(self) -> tuple[Message, ...]:
        return ()

    @property
    def prompt(self) -> tuple[Message, ...]:
        return ()

    @property
    def target(self) -> str:
        return ""

    @property
    def question(self) -> str:
        return self.text


Example = Chat | Text


def normalised(text: str) -> str:
    """``text`` in Unicode compatibility form, case and white space folded: equal for texts that read the same."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()


def content_hash(text: str) -> str:
    return hashlib.sha256(normalised(text).encode("utf-8", "surrogatepass")).hexdigest()


# -- rows

ROLES = ("system", "user", "assistant")
MESSAGE = ("role", "content")
# Message fields that would change what is trained on, so they must not be ignored.
SIGNIFICANT = {
    "weight": "every assistant message is trained on",
    "tool_calls": "tool calls are not rendered",
    "function_call": "tool calls are not rendered",
}
UNSUPPORTED = {"chosen": "preference pairs", "rejected": "preference pairs", "conversations": "ShareGPT conversations"}

Build = Callable[[Row, str | None], Example | list[Problem]]


@dataclass(frozen=True)
class RowFormat:
    """A row has this format if it has all ``fields`` and none of ``excludes``; ``optional`` fields may be absent or
    empty. All fields are text, except ``lists``. ``build`` makes an example of a row whose texts are valid (the str is
    `data.instruction`), or returns the problems of its lists."""

    name: str
    fields: tuple[str, ...]
    build: Build
    optional: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()

    def fits(self, data: dict[str, Any]) -> bool:
        return all(f in data for f in self.fields) and not any(f in data for f in self.excludes)

    def unused(self, data: dict[str, Any]) -> set[str]:
        """Fields of a row, and of its messages, that are not used."""
        fields = {k for k in data if k not in (*self.fields, *self.optional)}
        nested = set[str]()
        for name in self.lists:
            items = data[name] if isinstance(data.get(name), list) else []
            nested |= {f"{name}[].{k}" for item in items if isinstance(item, dict) for k in item if k not in MESSAGE}
        return fields | nested


@dataclass(frozen=True)
class Parsed:
    """The valid examples of one file, in order; ``unused`` maps a field that is not used to the number of rows that
    have it."""

    format: str
    examples: tuple[Example, ...]
    unused: dict[str, int]


def parse(
    rows: Sequence[Row], name: str = "auto", columns: dict[str, str] | None = None, instruction: str | None = None
) -> Parsed:
    """All rows as Examples. ``name``: a format, or "auto"; ``columns``: standard field -> the user's field;
    ``instruction``: the system message of rows that have none. Raises DataError with every problem of every row."""
    standard = {column: field for field, column in (columns or {}).items()}
    renamed = [Row({standard.get(k, k): v for k, v in r.data.items()}, r.where) for r in rows]
    row_format = detect(renamed) if name == "auto" else next(f for f in FORMATS if f.name == name)
    problems: list[Problem] = []
    examples: list[Example] = []
    unused: Counter[str] = Counter()
    for row in renamed:
        unused.update(row_format.unused(row.data))
        result = _field_problems(row, row_format) or row_format.build(row, instruction)
        if isinstance(result, list):
            problems += result
        else:
            examples.append(result)
    if problems:
        raise DataError(problems)
    return Parsed(row_format.name, tuple(examples), dict(unused))


def detect(rows: Sequence[Row]) -> RowFormat:
    """The format of all rows. Raises DATA_MIXED_SCHEMA, DATA_FORM_UNSUPPORTED or DATA_FIELD_MISSING."""
    votes: dict[str, list[Row]] = {}
    for row in rows:
        fitting = next((f for f in FORMATS if f.fits(row.data)), None)
        if fitting is not None:
            votes.setdefault(fitting.name, []).append(row)
    if len(votes) > 1:
        ordered = sorted(votes.items(), key=lambda kv: -len(kv[1]))
        parts = ", ".join(f"{len(v)} {k} (first: {v[0].where})" for k, v in ordered)
        raise data_error(
            "DATA_MIXED_SCHEMA",
            f"the rows have different formats: {parts}.",
            where=rows[0].where,
            fix="use one format per file, or set data.format=...",
        )
    if votes:
        return next(f for f in FORMATS if f.name in votes)
    fields = list(rows[0].data)
    for name, what in UNSUPPORTED.items():
        if name in fields:
            raise data_error(
                "DATA_FORM_UNSUPPORTED",
                f"{what} (field {name!r}) are not supported yet.",
                where=rows[0].where,
                fix="rewrite them as chat `messages`.",
            )
    known = [f for row_format in FORMATS for f in row_format.fields]
    close = [
        (f, m[0]) for f in fields if (m := difflib.get_close_matches(f.lower(), known, n=1, cutoff=0.7)) and m[0] != f
    ]
    guess = f" Did you mean {close[0][1]!r} for {close[0][0]!r}?" if close else ""
    raise data_error(
        "DATA_FIELD_MISSING",
        f"no known format has the fields {fields[:8]}.{guess}",
        where=rows[0].where,
        fix="rename them, or map them: data.columns='{prompt: your_field, completion: other_field}'.",
    )


def _field_problems(row: Row, row_format: RowFormat) -> list[Problem]:
    problems = []

    def add(code: str, message: str, fix: str) -> None:
        problems.append(Problem(code, message, row.where, fix))

    for name in (*row_format.fields, *(f for f in row_format.optional if f in row.data)):
        value = row.data.get(name)
        if name not in row.data:
            close = difflib.get_close_matches(name, list(row.data), n=1, cutoff=0.6)
            fix = (
                f"rename {close[0]!r} to {name!r}."
                if close
                else "add it, or map another field to it with data.columns."
            )
            message = f"the field {name!r} of a {row_format.name} row is missing; the row has {list(row.data)[:8]}."
            add("DATA_FIELD_MISSING", message, fix)
        elif name in row_format.lists:
            pass
        elif not isinstance(value, str):
            got = "a list" if isinstance(value, list) else type(value).__name__
            message = f"{name!r} must be text, not {got} ({str(value)[:40]!r})."
            add("DATA_FIELD_TYPE", message, "write it as text, in quotes.")
        elif not value.strip() and name not in row_format.optional:
            add("DATA_EMPTY_TARGET", f"{name!r} is empty.", "fill it in, or remove the row.")
    return problems


def _chat(messages: Sequence[Message], instruction: str | None, where: str) -> Chat:
    head = (Message("system", instruction),) if instruction is not None and messages[0].role != "system" else ()
    return Chat((*head, *messages), where)


def _pair(prompt: str, answer: str) -> Build:
    """Builds a Chat from two fields: the user message and the answer."""

    def build(row: Row, instruction: str | None) -> Chat:
        turns = (Message("user", row.data[prompt]), Message("assistant", row.data[answer]))
        return _chat(turns, instruction, row.where)

    return build


def _instruction(row: Row, instruction: str | None) -> Chat:
    order, extra = row.data["instruction"], row.data.get("input", "")
    user = f"{order}\n\n{extra}" if extra.strip() else order
    return _chat((Message("user", user), Message("assistant", row.data["output"])), instruction, row.where)


def _text(row: Row, instruction: str | None) -> Text:
    return Text(row.data["text"], row.where)


def _conversation(row: Row, instruction: str | None) -> Chat | list[Problem]:
    value = row.data["messages"]
    if not isinstance(value, list) or not value:
        fix = 'write [{"role": "user", "content": "..."}, ...].'
        return [Problem("DATA_FIELD_TYPE", "'messages' must be a list of messages.", row.where, fix)]
    parsed = [_message(i, item, row.where) for i, item in enumerate(value)]
    messages = [m for m in parsed if isinstance(m, Message)]
    problems = [p for p in parsed if isinstance(p, Problem)]
    if not problems and (problem := _turn_order([m.role for m in messages], row.where)) is not None:
        problems = [problem]
    return problems or _chat(messages, instruction, row.where)


def _message(i: int, item: Any, where: str) -> Message | Problem:
    if not isinstance(item, dict):
        return Problem(
            "DATA_FIELD_TYPE", f"messages[{i}] is not an object.", where, 'write {"role": ..., "content": ...}.'
        )
    role, content = item.get("role"), item.get("content")
    without_effect: tuple[Any, ...] = (None, [], 1) if role == "assistant" else (None, [], 0, 1)
    for name, why in SIGNIFICANT.items():
        if item.get(name) not in without_effect:
            message = f"messages[{i}].{name} is not supported: {why}."
            return Problem("DATA_FORM_UNSUPPORTED", message, where, "remove it, or the row.")
    if role not in ROLES:
        close = difflib.get_close_matches(str(role).lower(), ROLES, n=1, cutoff=0.6)
        fix = (
            f"did you mean {close[0]!r}?"
            if close
            else f"roles are {', '.join(ROLES)}; tool calls are not supported yet."
        )
        return Problem("DATA_ROLE_UNKNOWN", f"messages[{i}] has the role {role!r}.", where, fix)
    if not isinstance(content, str):
        message = f"messages[{i}].content must be text, not {type(content).__name__}."
        return Problem("DATA_FIELD_TYPE", message, where, "write it as text, in quotes.")
    if not content.strip():
        return Problem(
            "DATA_EMPTY_TARGET", f"messages[{i}] ({role}) is empty.", where, "fill it in, or remove the row."
        )
    return Message(role, content)


def _turn_order(roles: list[str], where: str) -> Problem | None:
    turns = roles[1:] if roles[0] == "system" else roles
    code, message, fix = "DATA_TURN_ORDER", "", ""
    if "assistant" not in roles:
        code, message = "DATA_NOTHING_TO_LEARN", "there is no assistant message, so there is nothing to train on."
        fix = "add the answer as an assistant message."
    elif "system" in turns:
        message, fix = "a system message occurs after the first message.", "keep one system message, at the beginning."
    elif turns[-1] != "assistant":
        message, fix = "the last message is not from the assistant.", "end the row with the answer."
    elif turns[0] != "user":
        message, fix = "the conversation does not begin with the user.", "begin with a user message."
    elif repeated := next((a for a, b in itertools.pairwise(turns) if a == b), None):
        message, fix = f"two {repeated} messages in a row.", "join them, or add the missing turn between them."
    return Problem(code, message, where, fix) if message else None


# In the order of detection.
FORMATS = (
    RowFormat("chat", ("messages",), _conversation, lists=("messages",)),
    RowFormat("completion", ("prompt", "completion"), _pair("prompt", "completion")),
    RowFormat("instruction", ("instruction", "output"), _instruction, optional=("input",)),
    RowFormat("label", ("text", "label"), _pair("text", "label")),
    RowFormat("text", ("text",), _text, excludes=("prompt", "completion", "output", "instruction")),
)
FORMAT_NAMES = tuple(f.name for f in FORMATS)  # the values of data.format
