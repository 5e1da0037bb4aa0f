"""Synthetic rows: the prompts of rows, answered by another model behind an endpoint, each with its lineage. No torch.

Answers are appended as they come, so that what was answered, or refused, is not asked for again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tunewright.core import run_folder
from tunewright.core.config import Config
from tunewright.core.errors import DataError, RunError, data_error
from tunewright.core.locations import listed
from tunewright.data import formats
from tunewright.data.endpoints.openai_endpoint import Endpoint, Refused, Reply, ask_each
from tunewright.data.formats.fields import SYNTHETIC
from tunewright.data.formats.row_format import Data
from tunewright.data.messages import Chat, Json, Prompt
from tunewright.data.metrics import read_label
from tunewright.data.remedies import answered, prepared
from tunewright.data.remedies.prepared import FileRows
from tunewright.data.task import detect_task
from tunewright.data.text import without_thoughts

MOST_REFUSED = 3  # requests, before any is answered


@dataclass(frozen=True)
class Synthesis:
    """``day``: YYYY-MM-DD, of the lineage; ``max_tokens``: of an answer; ``file``: where rows are written."""

    endpoint: Endpoint
    max_tokens: int
    day: str
    file: Path

    @property
    def refusals(self) -> Path:
        """The file that lists the rows without an answer."""
        return self.file.with_name(f"{self.file.name}.refused.jsonl")

    def lineage(self, prompt: Prompt) -> dict[str, Json]:
        """Who wrote the answer to a prompt, and how."""
        return {
            "model": self.endpoint.model,
            "endpoint": self.endpoint.host,
            "date": self.day,
            "temperature": self.endpoint.temperature,
            "max_tokens": self.max_tokens,
            "prompt": _hash(prompt),
        }


@dataclass(frozen=True)
class Asked:
    """A row whose prompt is answered. ``labels``: of which the answer must be one, if there are any."""

    row: Data
    chat: Chat
    format: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Refusal:
    """A row without an answer, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class Result:
    """``written``: rows of this lineage in the file, of which ``before`` were in it before; ``refused``: rows without
    an answer; ``requests``: that were sent."""

    written: int
    before: int
    refused: tuple[Refusal, ...]
    requests: int


def rows_to_answer(config: Config) -> list[Asked]:
    """The rows of data.train, whether or not they have answers; of rows with one prompt, the first. Raises DataError,
    also for rows that have no prompt, or tools."""
    read = _read(config)
    examples, raw = read.parsed.examples, {row.where: row.data for row in read.source.rows}
    chats = [e for e in examples if isinstance(e, Chat)]
    with_tools = next((e for e in chats if e.tools), None)
    if not chats or with_tools:
        what = "documents have no prompts" if not chats else "answers to rows with tools may be calls"
        fix = "give rows with prompts and without tools."
        where = examples[0].where if not chats else with_tools.where if with_tools else ""
        raise data_error("DATA_FORM_UNSUPPORTED", f"no answers are asked for: {what}.", where=where, fix=fix)
    labels = () if chats[0].item is not None else detect_task(chats).labels
    first: dict[str, Asked] = {}
    for chat in chats:
        first.setdefault(_hash(chat.prompt), Asked(raw[chat.where], chat, read.parsed.format, labels))
    return list(first.values())


def _read(config: Config) -> FileRows:
    """The rows, as rows with answers or else as prompts."""
    how, names = prepared.row_settings(config), listed(config.data.train)
    if how.rewards:
        return prepared.read(names, config, how)
    try:
        return prepared.read(names, config, how)
    except DataError:
        try:
            return prepared.read(names, config, replace(how, rewards=True, preference=False, rated=False))
        except DataError:
            pass
        raise


def synthesize(
    asked: Sequence[Asked], how: Synthesis, columns: Mapping[str, str], progress: Callable[[int], None]
) -> Result:
    """Asks for the answers that the file does not have, and puts its rows into the order of ``asked`` at the end.
    ``progress``: called with 1 for each. Raises REMOTE_FAILED, after writing what came; DATA_EXISTS; RUN_LOCKED."""
    with _alone(how.file):
        known, refused = _by_prompt(how.file, how), _by_prompt(how.refusals, how)
        waiting = [a for a in asked if _hash(a.chat.prompt) not in {**known, **refused}]
        before, answers, refusals = len(known), 0, 0
        progress(len(asked) - len(waiting))
        for place, reply in ask_each(how.endpoint, [a.chat.prompt for a in waiting], how.max_tokens):
            own = waiting[place]
            problem = str(reply) if isinstance(reply, Refused) else _problem(reply, own.labels)
            answers, refusals = answers + isinstance(reply, Reply), refusals + isinstance(reply, Refused)
            if isinstance(reply, Refused) and not answers and refusals == MOST_REFUSED:
                raise reply  # it refuses whatever it is asked
            if problem or isinstance(reply, Refused):
                entry = {"where": own.chat.where, "reason": problem, SYNTHETIC: how.lineage(own.chat.prompt)}
                run_folder.append_line(how.refusals, entry)
            else:
                run_folder.append_line(how.file, _row(own, _answer(reply, own.labels), how, columns))
            progress(1)
        known, refused = _by_prompt(how.file, how), _by_prompt(how.refusals, how)
        order = [_hash(a.chat.prompt) for a in asked]
        _write_in_order(how, known, order)
    listed_ = tuple(Refusal(str(refused[p]["where"]), str(refused[p]["reason"])) for p in order if p in refused)
    return Result(sum(p in known for p in order), before, listed_, answers + refusals)


def _row(asked: Asked, answer: str, how: Synthesis, columns: Mapping[str, str]) -> Data:
    row_format = next(f for f in formats.FORMATS if f.name == asked.format)
    made = answered.answered(asked.row, row_format, asked.chat, answer, columns)
    return {**made, SYNTHETIC: how.lineage(asked.chat.prompt)}


def _problem(reply: Reply, labels: Sequence[str]) -> str:
    """Why an answer is no row; empty if it is one."""
    if reply.cut:
        return "the answer reached the token limit (--max-tokens)"
    if not without_thoughts(reply.text).strip():
        return "the answer is empty"
    return "" if not labels or _answer(reply, labels) else f"{reply.text[:80]!r} is none of the labels"


def _answer(reply: Reply, labels: Sequence[str]) -> str:
    """The answer; for rows with labels, the one that it names, or an empty text."""
    return (read_label(without_thoughts(reply.text), tuple(labels)) or "") if labels else reply.text.strip()


def _hash(prompt: Prompt) -> str:
    content = [[m.to_json() for m in prompt.messages], list(prompt.tools)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _by_prompt(file: Path, how: Synthesis) -> dict[str, Data]:
    """The lines of a file that have the lineage of this command, whatever its day, by the hash of the prompt."""
    return {prompt: line for line in _lines(file) if (prompt := _prompt_of(line, how))}


def _lines(file: Path) -> list[Data]:
    """Raises DATA_EXISTS unless all lines are synthetic rows: nothing else is added to."""
    try:
        lines: list[Data] = list(run_folder.read_lines(file))
    except ValueError:
        lines = [{}]
    if any(not isinstance(line, dict) or not isinstance(line.get(SYNTHETIC), dict) for line in lines):
        message = "the file exists, and has rows that this command did not write."
        raise data_error("DATA_EXISTS", message, where=str(file), fix="choose another --out.")
    return lines


def _prompt_of(line: Data, how: Synthesis) -> str:
    """The hash of a line's prompt, if its lineage is that of this command; else an empty text."""
    given, wanted = line[SYNTHETIC], how.lineage(Prompt())
    assert isinstance(given, dict)
    same = all(given.get(k) == v for k, v in wanted.items() if k not in ("date", "prompt"))
    return str(given.get("prompt", "")) if same else ""


def _write_in_order(how: Synthesis, known: Mapping[str, Data], order: Sequence[str]) -> None:
    """What came in the order of replies, in that of the prompts; after rows of other lineages and other prompts."""
    lines, wanted = _lines(how.file), set(order)
    others = [line for line in lines if _prompt_of(line, how) not in wanted]
    sorted_ = [*others, *(known[prompt] for prompt in order if prompt in known)]
    if sorted_ != lines:
        run_folder.write_lines(how.file, sorted_)


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Raises RUN_LOCKED if another process is writing the file."""
    from filelock import FileLock, Timeout

    with run_folder.disk_errors(file):
        run_folder.make_folder(file.parent)
        lock = FileLock(file.with_name(f".{file.name}.lock"), mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        message = "another process is writing this file."
        raise RunError("RUN_LOCKED", message, where=str(file), fix="wait for it, or choose another --out.") from None
    try:
        yield
    finally:
        lock.release()
