"""The run folder: file names, atomic writes, the single-writer lock. The only channel between the stages of a run.

A file that exists is complete: it is written under a temporary name, flushed, and renamed. Only one process at a time
writes to a folder (`writing`). Only its owner can read it, whatever the umask: rows, prompts and answers are in it.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tunewright.core import stage_names
from tunewright.core.errors import RunError, TrainError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
ATTEMPT = "TUNEWRIGHT_ATTEMPT"
TEMPORARY = re.compile(r"\..+\.\d+\.\d+")  # written by `write_atomic`; left behind if the process is killed


class File:
    """A descriptor: as an attribute of Run, the path of a file or folder of the run."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: Run, owner: type[Run]) -> Path:
        return run.path / self.name


@dataclass(frozen=True)
class Run:
    """The paths of one run's files. Creating a Run reads nothing."""

    path: Path

    config = File("config.yaml")
    selftest = File("selftest.json")
    plan = File("plan.json")
    protocol = File("protocol.json")
    receipt = File("receipt.json")
    audit = File("data/audit.json")
    split = File("data/split.jsonl")
    metrics = File("metrics.jsonl")
    events = File("events.jsonl")
    start = File("start")
    checkpoints = File("checkpoints")
    weights = File("checkpoints/final.safetensors")
    training = File("training.json")
    branch_file = File("branch.json")
    sweep = File("sweep.json")
    adapter = File("adapter")
    merged = File("merged")
    export = File("export.json")
    verify = File("verify.json")
    scores = File("scores")
    people = File("people.jsonl")
    judge = File("judge.jsonl")
    preferences = File("people.json")
    forgetting = File("forgetting.json")
    cost = File("cost.json")
    mitigation = File("mitigation.json")
    prompt_distillation = File("prompt_distillation.json")
    crossfit = File("crossfit.json")
    cleaning = File("cleaning.json")
    learning_curve = File("learning_curve.json")
    verdict = File("verdict.json")
    report = File("report.html")

    @property
    def name(self) -> str:
        return self.path.absolute().name

    def branch(self, name: str) -> Run:
        """The folder of a branch: an extra training run that belongs to this run."""
        return Run(self.path / "branches" / name)

    @property
    def stage(self) -> str:
        """The last completed stage as a participle, for lists of runs; `created` if there is none."""
        last = stage_names.last_done(self.path)
        return last.done if last else "created"

    def event(self, kind: str, **facts: Any) -> None:
        """Append a line to events.jsonl."""
        append_line(self.events, {"time": now(), "event": kind, **facts})


def create(root: Path, name: str | None, stem: str) -> Run:
    """Creates a run folder that only its owner can read. Raises RUN_EXISTS if the run exists."""
    for candidate in [name] if name is not None else _names(stem):
        run = Run(contained(root, candidate))
        with disk_errors(root):
            if not root.is_dir():
                make_folder(root)
                root.chmod(0o711)  # exports can be read by others, see `portable.let_others_read`
        if _new_folder(run.path):
            for folder in ("data", "scores"):
                _new_folder(run.path / folder)
            return run
    raise RunError(
        "RUN_EXISTS",
        f"{run.path} already exists.",
        where=str(run.path),
        fix=f"choose another --name, or continue it: `tunewright run {run.path}`.",
    )


def _names(stem: str) -> Iterator[str]:
    """Names for a run of this second; several, because another process may start one at the same time."""
    own = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.")[:60] or "run"
    base = f"{own}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    yield from (f"{base}-{number}" if number > 1 else base for number in itertools.count(1))


def _new_folder(path: Path) -> bool:
    """Whether the folder was made; False if something of that name exists."""
    with disk_errors(path):
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            return False
    return True


def contained(root: Path, name: str) -> Path:
    """``root / name``. Raises PATH_OUTSIDE for a name that could escape ``root``."""
    if not NAME.fullmatch(name):
        raise RunError(
            "PATH_OUTSIDE",
            f"`{name}` is not a valid run name.",
            where=name,
            fix="use letters, digits, dots, dashes and underscores.",
        )
    return root / name


def find(root: Path, name: str) -> Run:
    """The run at a path, or of that name under ``root``. Raises RUN_NOT_FOUND."""
    for path in (Path(name), root / name):
        if (path / "config.yaml").is_file():
            return Run(path)
    raise RunError(
        "RUN_NOT_FOUND",
        f"`{name}` is a folder, but not a run." if Path(name).is_dir() else f"there is no run `{name}`.",
        where=str(root),
        fix="list the runs with `tunewright runs list`.",
    )


def require(run: Run, file: Path, verb: str) -> None:
    """Raises RUN_INCOMPLETE unless ``file`` exists; `tunewright VERB` runs the stage that writes it."""
    if not file.exists():
        last = stage_names.last_done(run.path)
        raise RunError(
            "RUN_INCOMPLETE",
            f"the run has only completed `{last.name}`." if last else "the run has not completed any stage.",
            where=str(run.path),
            fix=f"continue it with `tunewright {verb} {run.path}`.",
        )


def all_runs(root: Path) -> list[Run]:
    """Every run in ``root``, oldest first."""
    if not root.is_dir():
        return []
    runs = [Run(p) for p in root.iterdir() if (p / "config.yaml").is_file()]
    return sorted(runs, key=lambda r: r.config.stat().st_mtime)


def remove(run: Run) -> None:
    """Delete a run folder. Raises RUN_LOCKED while another process is writing to it."""
    assert run.config.is_file()
    with writing(run):
        shutil.rmtree(run.path)


@contextmanager
def writing(run: Run, started_by: str = "") -> Iterator[None]:
    """Hold the run folder's write lock. Raises RUN_LOCKED, naming the process that holds it. ``started_by``:
    names whoever starts this process, and starts it again, on another machine if need be, once it has ended; by
    default TUNEWRIGHT_ATTEMPT, which a batch system or a cluster sets to the name of its job.

    The operating system releases the lock when its process dies, however it dies, and keeps it while the process is
    merely suspended, so no timeout is needed. Some network drives lock per machine only; hence the check of the owner's
    host.
    """
    from filelock import FileLock, Timeout

    lock, owner, started_by = (
        FileLock(run.path / ".lock", mode=0o600),
        run.path / ".owner",
        started_by or os.environ.get(ATTEMPT, ""),
    )
    with disk_errors(run.path):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise _locked(run, _owner(owner), "wait for it to finish, or stop it.") from None
    try:
        before, host = _owner(owner), platform.node()
        if before and before["host"] != host and not (started_by and before.get("attempt") == started_by):
            raise _locked(run, before, f"if that process no longer exists, remove {owner}.")
        if before:
            run.event("taken_over", from_process=before["process"])
        with disk_errors(run.path):
            for file in run.path.rglob(".*"):  # not those of branches, which other processes may be writing
                if TEMPORARY.fullmatch(file.name) and "branches" not in file.relative_to(run.path).parts:
                    file.unlink(missing_ok=True)
        write_json(
            owner,
            {
                "process": os.getpid(),
                "host": host,
                "since": now(),
                "command": " ".join(sys.argv),
                "attempt": started_by,
            },
        )
        try:
            yield
        finally:
            with disk_errors(owner):
                owner.unlink(missing_ok=True)
    finally:
        lock.release()


def _owner(file: Path) -> dict[str, Any]:
    try:
        owner = read_json(file)
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) and {"process", "host", "since"} <= set(owner) else {}


def _locked(run: Run, owner: dict[str, Any], fix: str) -> RunError:
    who = f"process {owner['process']} on {owner['host']}, since {owner['since']}" if owner else "another process"
    return RunError("RUN_LOCKED", f"the run is locked by {who}.", where=str(run.path), fix=fix)


def now() -> str:
    """UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def private(path: str, flags: int) -> int:
    """An opener for `open`: a new file can be read by its owner alone."""
    return os.open(path, flags, 0o600)


def make_folder(path: Path) -> None:
    """Create a folder, and those that it lies in, where there are none: only their owner can enter them."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write to a temporary file, flush, rename: readers see the old file or the new one. Raises RUN_DISK."""
    raw = data.encode("utf-8") if isinstance(data, str) else data
    with disk_errors(path):
        make_folder(path.parent)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
        try:
            with open(temporary, "xb", opener=private) as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise RUN_DISK for an OSError in the block: no space, no permission, a failing disk."""
    try:
        yield
    except OSError as error:
        raise TrainError(
            "RUN_DISK",
            f"cannot write: {error.strerror or error}.",
            where=str(path),
            fix="check space and permissions, then rerun the same command; existing files are complete.",
        ) from None


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder, which takes the place of ``folder`` when the block ends: a killed process leaves the old one,
    the new one or none, and no half; an error leaves the old one. Raises RUN_DISK."""
    with disk_errors(folder):
        for leftover in folder.parent.glob(f".{folder.name}-*"):  # of a process that was killed here
            shutil.rmtree(leftover)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    old = temporary.with_name(f"{temporary.name}-old")
    try:
        yield temporary
        with disk_errors(folder):
            if folder.exists():
                folder.rename(old)
            try:
                temporary.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
    finally:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)


def sha256(file: Path) -> str:
    """Hex digest of a file, read in chunks."""
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename survives a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    write_atomic(path, "".join(json.dumps(r, ensure_ascii=False, allow_nan=False) + "\n" for r in rows))


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Append a line and flush it, replacing an incomplete last line (full disk, killed writer). Raises RUN_DISK."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    with disk_errors(path), open(path, "a+b", opener=private) as file:
        file.truncate(_end_of_last_line(file))
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def _end_of_last_line(file: BinaryIO) -> int:
    """Offset just after the last newline; 0 if there is none."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 4096)
        file.seek(start)
        if (last := file.read(end - start).rfind(b"\n")) >= 0:
            return start + last + 1
        end = start
    return 0


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL file, except an incomplete last line (left by a killed writer); none if there is no file."""
    if not path.exists():
        return
    for line in path.read_bytes().split(b"\n")[:-1]:
        if line.strip():
            yield json.loads(line)
