"""The run folder: the only channel between the stages of a run, and between a run and everyone who looks at it.

A file that is there is whole: everything is written beside its name, flushed, and renamed. Every file has one writer.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.errors import RunError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Run:
    """Names of the files of one run; nothing is read before it is asked for."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    config = property(lambda self: self.path / "config.yaml")
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
        append_line(
            self.events, {"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "event": kind, **facts}
        )


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
            mend=f"choose another --name, or continue it: `tunewright run {run.path}`.",
        )
    run.path.mkdir(parents=True, mode=0o700)
    for folder in ("data", "scores"):
        (run.path / folder).mkdir(mode=0o700)
    return run


def contained(root: Path, name: str) -> Path:
    if not NAME.fullmatch(name):
        raise RunError(
            "PATH_OUTSIDE", f"`{name}` cannot name a run.", where=name, mend="use letters, digits, dot, dash and underscore."
        )
    return root / name


def find(root: Path, name: str) -> Run:
    """A run by its path or by its name under ``root``."""
    for path in (Path(name), root / name):
        if (path / "config.yaml").is_file():
            return Run(path)
    raise RunError("RUN_NOT_FOUND", f"no run `{name}`.", where=str(root), mend="`tunewright runs list` shows the runs.")


def all_runs(root: Path) -> list[Run]:
    """Every run below ``root``, oldest first."""
    if not root.is_dir():
        return []
    found = [Run(p) for p in root.iterdir() if (p / "config.yaml").is_file()]
    return sorted(found, key=lambda r: r.config.stat().st_mtime)


def remove(run: Run) -> None:
    assert run.config.is_file()
    shutil.rmtree(run.path)


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write beside, flush to disk, rename: a reader sees the old file or the new one, never a part."""
    raw = data.encode("utf-8") if isinstance(data, str) else data
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
    line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    with open(path, "a", encoding="utf-8") as file:
        file.write(line)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL file; an unfinished last line (a killed writer) is not a row."""
    if not path.exists():
        return
    for line in path.read_bytes().split(b"\n")[:-1]:
        if line.strip():
            yield json.loads(line)
