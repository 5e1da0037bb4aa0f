"""Rows -> Examples: the one place that knows what a row may look like.

    chat         {"messages": [{"role": "system|user|assistant", "content": "..."}, ...]}
    completion   {"prompt": "...", "completion": "..."}
    instruction  {"instruction": "...", "input": "..." (may be absent or empty), "output": "..."}
    label        {"text": "...", "label": "..."}
    text         {"text": "..."}, or a document of a folder

The first four become a Chat (what they differ in is notation), the last a Text. A label is what the model should say.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunewright.core.errors import DataError, Problem
from tunewright.data.sources import Row

Format = Literal["chat", "completion", "instruction", "label", "text"]
FIELDS: dict[Format, tuple[str, ...]] = {
    "chat": ("messages",),
    "completion": ("prompt", "completion"),
    "instruction": ("instruction", "output"),
    "label": ("text", "label"),
    "text": ("text",),
}
OPTIONAL: dict[Format, tuple[str, ...]] = {"instruction": ("input",)}
LATER = {"chosen": "preference pairs", "rejected": "preference pairs", "conversations": "ShareGPT conversations"}
ROLES = ("system", "user", "assistant")
# Fields of a message that would change what is learned, and so may not be passed over.
MEANT = {
    "weight": "every assistant message is learned",
    "tool_calls": "tool calls are not rendered",
    "function_call": "tool calls are not rendered",
}


@dataclass(frozen=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True)
class Chat:
    """A valid conversation that ends with an assistant turn."""

    messages: tuple[Message, ...]
    where: str

    @property
    def prompt(self) -> tuple[Message, ...]:
        return self.messages[:-1]

    @property
    def target(self) -> str:
        return self.messages[-1].content


@dataclass(frozen=True)
class Text:
    """A document to continue; every token is learned."""

    text: str
    where: str


Example = Chat | Text


@dataclass(frozen=True)
class Parsed:
    """Valid examples of one file, in its order; ``unused`` counts fields that nothing reads."""

    format: Format
    examples: tuple[Example, ...]
    unused: dict[str, int]


def parse(
    rows: Sequence[Row], form: str = "auto", columns: dict[str, str] | None = None, instruction: str | None = None
) -> Parsed:
    """All rows as Examples. Raises DataError with every problem of every row."""
    renamed = [Row(_rename(r.data, columns or {}), r.where) for r in rows]
    kind = detect(renamed) if form == "auto" else _as_format(form)
    problems: list[Problem] = []
    examples: list[Example] = []
    unused: Counter[str] = Counter()
    known = {*FIELDS[kind], *OPTIONAL.get(kind, ())}
    for row in renamed:
        unused.update(k for k in row.data if k not in known)
        if kind == "chat":
            unused.update(_unread(row.data.get("messages")))
        found = _parse_row(row, kind, instruction, problems)
        if found is not None:
            examples.append(found)
    if problems:
        raise DataError(problems)
    return Parsed(kind, tuple(examples), dict(unused))


def _unread(messages: Any) -> set[str]:
    """Fields of messages that nothing reads."""
    listed = messages if isinstance(messages, list) else []
    return {f"messages[].{k}" for m in listed if isinstance(m, dict) for k in m if k not in ("role", "content")}


def detect(rows: Sequence[Row]) -> Format:
    """The form that the rows have in common. Raises DATA_MIXED_SCHEMA or DATA_FORMAT_MISMATCH."""
    votes: dict[Format | None, list[Row]] = {}
    for row in rows:
        votes.setdefault(_format_of(row.data), []).append(row)
    known = {k: v for k, v in votes.items() if k is not None}
    if len(known) > 1:
        parts = ", ".join(f"{len(v)} {k} (first: {v[0].where})" for k, v in sorted(known.items(), key=lambda kv: -len(kv[1])))
        raise DataError(
            [
                Problem(
                    "DATA_MIXED_SCHEMA",
                    f"rows of several forms: {parts}.",
                    rows[0].where,
                    "one form a file, or say data.format=...",
                )
            ]
        )
    if known:
        return next(iter(known))
    fields = list(rows[0].data)
    for name, what in LATER.items():
        if name in fields:
            raise DataError(
                [
                    Problem(
                        "DATA_FORM_UNSUPPORTED",
                        f"{what} (field {name!r}) are not supported yet.",
                        rows[0].where,
                        "rewrite them as chat `messages`.",
                    )
                ]
            )
    wanted = [f for form in FIELDS.values() for f in form]
    close = [(f, m[0]) for f in fields if (m := difflib.get_close_matches(f.lower(), wanted, n=1, cutoff=0.7)) and m[0] != f]
    guess = f" Did you mean {close[0][1]!r} for {close[0][0]!r}?" if close else ""
    raise DataError(
        [
            Problem(
                "DATA_FIELD_MISSING",
                f"no known form has the fields {fields[:8]}.{guess}",
                rows[0].where,
                "rename them, or map them: data.columns='{prompt: your_field, completion: other_field}'.",
            )
        ]
    )


def _format_of(data: dict[str, Any]) -> Format | None:
    order: tuple[Format, ...] = ("chat", "completion", "instruction", "label")
    for form in order:
        if all(f in data for f in FIELDS[form]):
            return form
    return "text" if "text" in data and not {"prompt", "completion", "output", "instruction"} & set(data) else None


def _as_format(form: str) -> Format:
    found: Format = next(f for f in FIELDS if f == form)
    return found


def _rename(data: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    if not columns:
        return data
    mine = {v: k for k, v in columns.items()}
    return {mine.get(k, k): v for k, v in data.items()}


def _parse_row(row: Row, form: Format, instruction: str | None, problems: list[Problem]) -> Example | None:
    before = len(problems)
    fields = [*FIELDS[form], *(f for f in OPTIONAL.get(form, ()) if f in row.data)]
    for name in fields:
        if name not in row.data:
            close = difflib.get_close_matches(name, list(row.data), n=1, cutoff=0.6)
            hint = f"rename {close[0]!r}." if close else "add it, or map another field to it with data.columns."
            problems.append(
                Problem(
                    "DATA_FIELD_MISSING",
                    f"the field {name!r} of a {form} row is missing; found {list(row.data)[:8]}.",
                    row.where,
                    hint,
                )
            )
        elif name != "messages" and not isinstance(row.data[name], str):
            got = "a list" if isinstance(row.data[name], list) else type(row.data[name]).__name__
            problems.append(
                Problem(
                    "DATA_FIELD_TYPE",
                    f"{name!r} should be text, it is {got} ({str(row.data[name])[:40]!r}).",
                    row.where,
                    "write it as text, in quotes.",
                )
            )
        elif name not in ("messages", "input") and not row.data[name].strip():
            problems.append(Problem("DATA_EMPTY_TARGET", f"{name!r} is empty.", row.where, "fill it, or remove the row."))
    if len(problems) > before:
        return None
    if form == "text":
        return Text(row.data["text"], row.where)
    if form == "chat":
        messages = _messages(row.data["messages"], row.where, problems)
        if messages is None:
            return None
    else:
        user, answer = _notation(form, row.data)
        messages = (Message("user", user), Message("assistant", answer))
    if instruction is not None and messages[0].role != "system":
        messages = (Message("system", instruction), *messages)
    return Chat(messages, row.where)


def _notation(form: Format, data: dict[str, Any]) -> tuple[str, str]:
    if form == "completion":
        return data["prompt"], data["completion"]
    if form == "label":
        return data["text"], data["label"]
    extra = data.get("input", "").strip()
    return (f"{data['instruction']}\n\n{data['input']}" if extra else data["instruction"]), data["output"]


def _messages(value: Any, where: str, problems: list[Problem]) -> tuple[Message, ...] | None:
    before = len(problems)

    def wrong(code: str, message: str, fix: str) -> None:
        problems.append(Problem(code, message, where, fix))

    if not isinstance(value, list) or not value:
        wrong("DATA_FIELD_TYPE", "'messages' should be a list of messages.", 'write [{"role": "user", "content": "..."}, ...].')
        return None
    messages = []
    for i, item in enumerate(value):
        if not isinstance(item, dict):
            wrong("DATA_FIELD_TYPE", f"messages[{i}] is not an object.", 'write {"role": ..., "content": ...}.')
            continue
        role, content = item.get("role"), item.get("content")
        meant = next((k for k in MEANT if item.get(k) not in (None, [], *([1] if role == "assistant" else [0, 1]))), None)
        if meant is not None:
            wrong("DATA_FORM_UNSUPPORTED", f"messages[{i}].{meant}: {MEANT[meant]} in this version.", "remove it, or the row.")
        elif role not in ROLES:
            close = difflib.get_close_matches(str(role).lower(), ROLES, n=1, cutoff=0.6)
            hint = f"did you mean {close[0]!r}?" if close else f"roles are {', '.join(ROLES)}; tool calls are not supported yet."
            wrong("DATA_ROLE_UNKNOWN", f"messages[{i}] has the role {role!r}.", hint)
        elif not isinstance(content, str):
            wrong(
                "DATA_FIELD_TYPE",
                f"messages[{i}].content should be text, it is {type(content).__name__}.",
                "write it as text, in quotes.",
            )
        elif not content.strip():
            wrong("DATA_EMPTY_TARGET", f"messages[{i}] ({role}) is empty.", "fill it, or remove the row.")
        else:
            messages.append(Message(role, content))
    if len(problems) > before:
        return None
    roles = [m.role for m in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if "assistant" not in roles:
        wrong(
            "DATA_NOTHING_TO_LEARN",
            "no assistant message, so nothing would be learned.",
            "add the answer as an assistant message.",
        )
    elif "system" in turns:
        wrong("DATA_TURN_ORDER", "a system message after the first place.", "keep one system message, at the beginning.")
    elif turns[-1] != "assistant":
        wrong("DATA_TURN_ORDER", "the last message is not the assistant's.", "end the row with the answer.")
    elif turns[0] != "user":
        wrong("DATA_TURN_ORDER", "the conversation does not begin with the user.", "begin with a user message.")
    elif twice := next((a for a, b in itertools.pairwise(turns) if a == b), None):
        wrong("DATA_TURN_ORDER", f"two {twice} messages in a row.", "join them, or add the turn between.")
    return tuple(messages) if len(problems) == before else None


def question(example: Example) -> str:
    """What identifies a row as a question: all that was said to the model, without the (shared) system message."""
    if isinstance(example, Text):
        return example.text
    return "\n".join(m.content for m in example.prompt if m.role != "system")


def normalised(text: str) -> str:
    """Unicode compatibility form, case and white space folded: two texts that a reader would call the same."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()


def content_hash(text: str) -> str:
    return hashlib.sha256(normalised(text).encode("utf-8", "surrogatepass")).hexdigest()
