"""Reads and audits files of rows in a process of its own: ``python -m tunewright.server.rows PIPE MEMORY``.

It is started by `reader`, answers one request after another, and ends with the server. What the rows do to it, they do
not do to the server: its memory is limited, and it is the first that Linux ends when there is none left.
"""

from __future__ import annotations

import ctypes
import json
import resource
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue

from tunewright.core.config import Config
from tunewright.core.errors import Problem, TunewrightError
from tunewright.core.records import Audit
from tunewright.data import dataset
from tunewright.data.dataset import Dataset
from tunewright.data.messages import Chat, Example, Message, Text
from tunewright.tokens.template import has_thoughts

OUT_OF_MEMORY = 3  # exit status
MOST_PROBLEMS, MOST_TEXT = 50, 10_000
MOST_EDITED = 32 << 20  # bytes of a file whose rows can be edited in a browser
MOST_CHARACTERS = 200_000  # of a row that is shown
KEPT_KB = 1 << 20  # a process that has used more memory gives it back by ending


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Part(Frozen):
    """Which rows are shown: ``count`` of them, from the ``start``-th of all or of those that are ``flagged``."""

    start: int
    count: int
    flagged: bool


class Row(Frozen):
    """``reasons``: why it is flagged. ``messages``: with ``trained`` for each of them; ``text``: of a document, which
    has none. A row that is too long to be shown has neither."""

    number: int
    where: str
    side: str
    reasons: tuple[str, ...] = ()
    messages: tuple[dict[str, JsonValue], ...] = ()
    trained: tuple[bool, ...] = ()
    tools: tuple[dict[str, JsonValue], ...] = ()
    text: str | None = None

    @property
    def example(self) -> Example | None:
        """What is trained on when it is fine-tuned on."""
        if self.text is not None:
            return Text(self.text, self.where)
        messages = zip(map(Message.from_json, self.messages), self.trained, strict=True)
        chat = tuple(replace(message, trained=trained) for message, trained in messages)
        return Chat(chat, self.where, self.tools) if chat else None


class Page(Frozen):
    """``flags``: how many rows are flagged; ``more``: where the next page starts, if there is one; ``thoughts``:
    whether any row of the file has thoughts; ``are_lines``: whether each row is a line, so that it can be edited."""

    audit: Audit
    rows: tuple[Row, ...]
    flags: int
    more: int | None
    thoughts: bool
    are_lines: bool


class Wrong(Frozen):
    """What is wrong with the rows, as an error says it, and its first problems."""

    text: str
    problems: tuple[Problem, ...]


class Request(Frozen):
    """``part``: None if no rows are to be shown."""

    config: Config
    part: Part | None = None


class Answer(Frozen):
    """``last``: whether the process ends now."""

    page: Page | None = None
    wrong: Wrong | None = None
    last: bool


def read(config: Config, part: Part | None) -> Page | None:
    """Raises DataError."""
    data = dataset.load(config)
    if part is None:
        return None
    audit = Audit.model_validate(data.audit_json(), strict=False)
    reasons = _reasons(audit)
    chosen = sorted(reasons) if part.flagged else range(len(data.examples))
    end = part.start + part.count
    return Page(
        audit=audit,
        rows=tuple(_row(data, i, reasons.get(i, ())) for i in islice(chosen, part.start, end)),
        flags=len(reasons),
        more=end if end < len(chosen) else None,
        thoughts=has_thoughts(data.examples),
        are_lines=_are_lines(Path(str(config.data.train))),
    )


def _row(data: Dataset, number: int, reasons: Sequence[str]) -> Row:
    example = data.examples[number]
    row = Row(number=number, where=example.where, side=data.sides[number], reasons=tuple(reasons))
    if len(example.text) > MOST_CHARACTERS:
        return row
    if isinstance(example, Text):
        return row.model_copy(update={"text": example.text})
    messages = example.messages
    shown = {"messages": tuple(m.to_json() for m in messages), "trained": tuple(m.trained for m in messages)}
    return row.model_copy(update={**shown, "tools": example.tools})


def _are_lines(file: Path) -> bool:
    if file.stat().st_size > MOST_EDITED:
        return False
    return all(_is_row(line.strip()) for line in file.read_bytes().split(b"\n") if line.strip())


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _reasons(audit: Audit) -> dict[int, list[str]]:
    """Why rows are flagged."""
    reasons: dict[int, list[str]] = {}
    for finding in audit.findings:
        if finding.level != "notice":
            for row in finding.rows:
                reasons.setdefault(row, []).append(finding.message)
    for suspect in audit.suspects:
        message = f"the label {suspect.given!r} looks wrong: more likely {suspect.predicted!r}"
        reasons.setdefault(suspect.row, []).append(message)
    return reasons


def _answer(asked: Request) -> Answer:
    page = wrong = None
    try:
        page = read(asked.config, asked.part)
    except TunewrightError as error:
        wrong = Wrong(text=str(error)[:MOST_TEXT], problems=error.problems[:MOST_PROBLEMS])
    return Answer(page=page, wrong=wrong, last=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > KEPT_KB)


def _confine(memory: int) -> None:
    with suppress(OSError, AttributeError):  # Linux alone has these
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # with the server, however that ends
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0)):
        with suppress(ValueError, OSError):  # a limit that this system does not have
            resource.setrlimit(kind, (most, most))


def main() -> None:
    pipe = Connection(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the server decides
    _confine(int(sys.argv[2]))
    try:
        _answer_all(pipe)
    except EOFError:  # the server has ended
        pass
    except MemoryError:
        sys.exit(OUT_OF_MEMORY)


def _answer_all(pipe: Connection) -> None:
    last = False
    while not last:
        answer = _answer(Request.model_validate_json(pipe.recv_bytes()))
        pipe.send_bytes(answer.model_dump_json().encode())
        last = answer.last


if __name__ == "__main__":
    main()
