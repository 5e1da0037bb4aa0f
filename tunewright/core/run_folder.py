"""The run folder: the only channel between the stages of a run, and between a run and everyone who looks at it.

A file that is there is whole: everything is written beside its name, flushed, and renamed. A folder has one writer (`writing`).
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tunewright.core.errors import RunError, TrainError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
HALF_WRITTEN = re.compile(r"\..+\.\d+\.\d+")  # by `write_atomic`, in a process that was killed


@dataclass(frozen=True)
class Run:
    """Names of the files of one run; nothing is read before it is asked for."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    config = property(lambda self: self.path / "config.yaml")
    selftest = property(lambda self: self.path / "selftest.json")
    plan = property(lambda self: self.path / "plan.json")
    protocol = property(lambda self: self.path / "protocol.json")
    receipt = property(lambda self: self.path / "receipt.json")
    audit = property(lambda self: self.path / "data" / "audit.json")
    split = property(lambda self: self.path / "data" / "split.jsonl")
    metrics = property(lambda self: self.path / "metrics.jsonl")
    events = property(lambda self: self.path / "events.jsonl")
    checkpoints = property(lambda self: self.path / "checkpoints")
    weights = property(lambda self: self.checkpoints / "final.safetensors")
    training = property(lambda self: self.path / "training.json")
    adapter = property(lambda self: self.path / "adapter")
    merged = property(lambda self: self.path / "merged")
    export = property(lambda self: self.path / "export.json")
    scores = property(lambda self: self.path / "scores")
    forgetting = property(lambda self: self.path / "forgetting.json")
    cost = property(lambda self: self.path / "cost.json")
    mitigation = property(lambda self: self.path / "mitigation.json")
    internalised = property(lambda self: self.path / "internalised.json")
    crossfit = property(lambda self: self.path / "crossfit.json")
    cleaning = property(lambda self: self.path / "cleaning.json")
    curve = property(lambda self: self.path / "curve.json")
    verdict = property(lambda self: self.path / "verdict.json")
    report = property(lambda self: self.path / "report.html")

    def branch(self, name: str) -> Run:
        """Another training beside this one, in a folder of its own."""
        return Run(self.path / "branches" / name)

    @property
    def share(self) -> float:
        """How much of the trained update counts: all of it, unless `forget` chose less."""
        return float(read_json(self.forgetting).get("chosen", 1.0)) if self.forgetting.exists() else 1.0

    @property
    def evidence(self) -> dict[str, Path]:
        """What stages beside the verdict found, by its name in verdict.json."""
        return {
            "retention": self.forgetting,
            "mitigation": self.mitigation,
            "crossfit": self.crossfit,
            "cleaning": self.cleaning,
            "internalised": self.internalised,
            "curve": self.curve,
            "cost": self.cost,
        }

    @property
    def stage(self) -> str:
        """The last stage that is whole."""
        for stage, file in (
            ("reported", self.report),
            ("exported", self.export),
            ("proven", self.verdict),
            ("weighed", self.forgetting),
            ("trained", self.training),
            ("planned", self.plan),
            ("checked", self.split),
        ):
            if file.exists():
                return stage
        return "created"

    def event(self, kind: str, **facts: Any) -> None:
        append_line(self.events, {"time": _now(), "event": kind, **facts})


def create(root: Path, name: str | None, stem: str) -> Run:
    """A new run folder, private to its owner. Raises RUN_EXISTS rather than write into another run."""
    if name is None:
        base = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.")[:60] or "run"
        base = f"{base}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
        name, number = base, 2
        while (root / name).exists():
            name, number = f"{base}-{number}", number + 1
    run = Run(contained(root, name))
    if run.path.exists():
        raise RunError(
            "RUN_EXISTS",
            f"{run.path} is already there.",
            where=str(run.path),
            fix=f"choose another --name, or continue it: `tunewright run {run.path}`.",
        )
    with disk_errors(run.path):
        run.path.parent.mkdir(parents=True, exist_ok=True)
        run.path.mkdir(mode=0o700)
        for folder in ("data", "scores"):
            (run.path / folder).mkdir(mode=0o700)
    return run


def contained(root: Path, name: str) -> Path:
    if not NAME.fullmatch(name):
        raise RunError(
            "PATH_OUTSIDE", f"`{name}` cannot name a run.", where=name, fix="use letters, digits, dot, dash and underscore."
        )
    return root / name


def find(root: Path, name: str) -> Run:
    """A run by its path or by its name under ``root``."""
    for path in (Path(name), root / name):
        if (path / "config.yaml").is_file():
            return Run(path)
    raise RunError("RUN_NOT_FOUND", f"no run `{name}`.", where=str(root), fix="`tunewright runs list` shows the runs.")


def require(run: Run, file: Path, verb: str) -> None:
    """Raises RUN_INCOMPLETE where the stage that writes ``file`` is not whole; `tunewright VERB` reaches it."""
    if not file.exists():
        raise RunError(
            "RUN_INCOMPLETE",
            f"the run is only {run.stage}.",
            where=str(run.path),
            fix=f"`tunewright {verb} {run.path}` goes on.",
        )


def all_runs(root: Path) -> list[Run]:
    """Every run below ``root``, oldest first."""
    if not root.is_dir():
        return []
    found = [Run(p) for p in root.iterdir() if (p / "config.yaml").is_file()]
    return sorted(found, key=lambda r: r.config.stat().st_mtime)


def remove(run: Run) -> None:
    """Raises RUN_LOCKED while another process writes there."""
    assert run.config.is_file()
    with writing(run):
        shutil.rmtree(run.path)


@contextmanager
def writing(run: Run) -> Iterator[None]:
    """Within, this process alone writes into the run folder. Raises RUN_LOCKED, saying who does.

    The kernel takes the lock from a process that dies, however it dies, and leaves it to one that is merely stopped, so there is
    no lease to outlive. Some network drives lock for one machine only; there the name of the owner's machine refuses.
    """
    from filelock import FileLock, Timeout

    lock, owner = FileLock(run.path / ".lock", mode=0o600), run.path / ".owner"
    with disk_errors(run.path):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise _locked(run, _owner(owner), "wait for it, or stop it.") from None
    try:
        before, host = _owner(owner), platform.node()
        if before and before["host"] != host:
            raise _locked(run, before, f"if that process is gone, remove {owner}.")
        if before:
            run.event("taken_over", from_process=before["process"])
        with disk_errors(run.path):
            for left in run.path.rglob(".*"):
                if HALF_WRITTEN.fullmatch(left.name):
                    left.unlink()
        write_json(owner, {"process": os.getpid(), "host": host, "since": _now(), "command": " ".join(sys.argv)})
        try:
            yield
        finally:
            with disk_errors(owner):
                owner.unlink(missing_ok=True)
    finally:
        lock.release()


def _owner(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and {"process", "host", "since"} <= set(found) else {}


def _locked(run: Run, owner: dict[str, Any], fix: str) -> RunError:
    who = f"process {owner['process']} on {owner['host']}, since {owner['since']}" if owner else "another process"
    return RunError("RUN_LOCKED", f"the run is being written by {who}.", where=str(run.path), fix=fix)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write beside, flush to disk, rename: a reader sees the old file or the new one, never a part. Raises RUN_DISK."""
    raw = data.encode("utf-8") if isinstance(data, str) else data
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
        try:
            with open(beside, "xb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
        sync_folder(path.parent)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Within, what the file system refuses (no space, no permission, a broken disk) is RUN_DISK."""
    try:
        yield
    except OSError as error:
        raise TrainError(
            "RUN_DISK",
            f"cannot be written: {error.strerror or error}.",
            where=str(path),
            fix="mend that and run the same command again: what is there is whole.",
        ) from None


def sha256(file: Path) -> str:
    """Of the whole file, read in pieces."""
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
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
    """One more line, flushed to disk, in place of an unfinished one that a full disk or a killed writer left. Raises RUN_DISK."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    with disk_errors(path), open(path, "a+b") as file:
        file.truncate(_whole_lines(file))
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def _whole_lines(file: BinaryIO) -> int:
    """Bytes up to the end of the last finished line."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 4096)
        file.seek(start)
        if (last := file.read(end - start).rfind(b"\n")) >= 0:
            return start + last + 1
        end = start
    return 0


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL file; an unfinished last line (a killed writer) is not a row."""
    if not path.exists():
        return
    for line in path.read_bytes().split(b"\n")[:-1]:
        if line.strip():
            yield json.loads(line)
