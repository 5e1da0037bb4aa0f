"""Files of rows, read and audited by other processes: what that takes, it does not take from the server."""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from tunewright.core.config import Config
from tunewright.core.errors import DataError, Problem, TunewrightError, data_error
from tunewright.core.locations import title
from tunewright.data import dataset
from tunewright.report import rows
from tunewright.report.rows import Part
from tunewright.server.shapes import JsonObject
from tunewright.system import memory
from tunewright.system.apart import Apart, GivenUp

MOST_PROBLEMS, MOST_TEXT = 50, 10_000
FEWER = "upload fewer or shorter rows, or train with `tunewright run`, which has no such limit."


@dataclass(frozen=True)
class ReadingLimits:
    """``at_once``: files that are read at a time; ``seconds`` for one, and ``per_mib`` more for each MiB of it;
    ``memory``: bytes of address space, None: half of the machine's memory."""

    at_once: int = 2
    seconds: float = 120.0
    per_mib: float = 10.0
    memory: int | None = None


class WrongRows(DataError):
    """As the process that read the rows reports it: the text of the error, and its first problems."""

    def __init__(self, wrong: JsonObject) -> None:
        self.problems = tuple(Problem(**problem) for problem in wrong["problems"])
        Exception.__init__(self, wrong["text"])


class Reader:
    def __init__(self, limits: ReadingLimits) -> None:
        self._limits = limits
        self._processes = Apart(__name__, limits.memory or int(memory.available().total / 2))
        self._threads = ThreadPoolExecutor(limits.at_once, "reader")

    def submit(self, config: Config, part: Part | None = None) -> Future[JsonObject]:
        """Reads the rows of a config, as a run will, when it is their turn; returns the page of a part of them. Raises
        DataError; DATA_READING if they take too much."""
        return self._threads.submit(self._read, config, part)

    def close(self) -> None:
        """What is being read is given up."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._processes.close()
        self._threads.shutdown()

    def _read(self, config: Config, part: Part | None) -> JsonObject:
        files = [Path(str(path)) for path in (config.data.train, config.data.dev) if path]
        size = sum(file.stat().st_size for file in files if file.exists())
        # `export` has nothing to do with rows, and to validate it imports torch.
        settings = config.model_dump(mode="json", exclude={"export"})
        request = {"config": settings, "part": asdict(part) if part else None}
        try:
            seconds = self._limits.seconds + self._limits.per_mib * size / (1 << 20)
            answered: JsonObject = json.loads(self._processes.ask(json.dumps(request).encode(), seconds))
        except GivenUp as error:
            what, where = f"reading and auditing the rows {error}.", title(config.data.train)
            raise data_error("DATA_READING", what, where=where, fix=FEWER) from None
        if "problems" in answered:
            raise WrongRows(answered)
        return answered


def answer(request: bytes) -> bytes:
    """In another process."""
    asked = json.loads(request)
    try:
        config = Config.model_validate(asked["config"], strict=False)
        data = dataset.load(config)
        answered = rows.page(data, Path(str(config.data.train)), Part(**asked["part"])) if asked["part"] else {}
    except TunewrightError as error:
        problems = [asdict(problem) for problem in error.problems[:MOST_PROBLEMS]]
        answered = {"text": str(error)[:MOST_TEXT], "problems": problems}
    return json.dumps(answered).encode()
