"""Follows a run for a tracker, in a process of its own: ``python -m tunewright.track.follow RUN TRACKER``.

It reads the run folder while the run writes it, and ends when its standard input ends, that is, with the process that
started it, however that ends. What a tracker does, or fails to do, cannot slow down or stop training.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from tunewright.core import programs, records, run_folder
from tunewright.core.config import REWARDED, Plan, flat
from tunewright.core.console import Console
from tunewright.core.errors import MissingExtra
from tunewright.core.records import METRICS, StartLine, StepLine, Verdict
from tunewright.core.run_folder import Run
from tunewright.track.trackers import NO_TELEMETRY, TRACKERS, TrackedRun, Tracker

POLL_SECONDS = 1.0
LAST_SECONDS = 60.0


@contextmanager
def following(run: Run, names: Sequence[str], console: Console) -> Iterator[None]:
    """Within, processes follow the run, one for each tracker. A failure of theirs is a warning. Raises MISSING_PACKAGE
    at once."""
    folder, started = run.path / "track", {}
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingExtra(name, f"track={name}", f"pip install {name}", where="track")
    for name in names:
        run_folder.make_folder(folder)
        command = [sys.executable, "-m", "tunewright.track.follow", str(run.path), name]
        with open(folder / f"{name}.log", "wb", opener=run_folder.private) as log:
            started[name] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
    try:
        yield
    finally:
        for name, process in started.items():
            try:
                process.communicate(timeout=LAST_SECONDS)  # ends its standard input
            except subprocess.TimeoutExpired:
                console.warn(f"track: {name} is still sending, in process {process.pid}")
            if process.returncode:
                file = folder / f"{name}.log"
                last = programs.last_line(file.read_text(encoding="utf-8", errors="replace"))
                console.warn(f"track: {name} failed: {last} ({file}); every number is in {run.metrics}")


def follow(run: Run, name: str, ended: threading.Event) -> None:
    """Send what the run writes until ``ended``, then the verdict and the report. What is sent is noted first: a kill
    may lose a point, but no point is sent twice."""
    note = run.path / "track" / f"{name}.json"
    with FileLock(note.with_suffix(".lock"), mode=0o600):
        step, report = -1, ""
        if note.exists():
            sent = run_folder.read_json(note)
            step, report = sent["step"], sent["report"]
        tracker: Tracker | None = None
        over = False
        while not over:
            over = ended.wait(POLL_SECONDS)
            for line in _after(run.metrics, step):
                tracker, step = tracker or TRACKERS[name](_tracked(run)), line.step
                run_folder.write_json(note, {"step": step, "report": report})
                tracker.log(step, _values(line, records.read(run.plan, Plan).method in REWARDED))
        if run.report.exists() and (digest := run_folder.sha256(run.report)) != report:
            tracker = tracker or TRACKERS[name](_tracked(run))
            run_folder.write_json(note, {"step": step, "report": digest})
            tracker.log(step + 1, _conclusion(records.read(run.verdict, Verdict)))
            tracker.attach(run.report)
        if tracker:
            tracker.close()


def _tracked(run: Run) -> TrackedRun:
    plan = records.read(run.plan, Plan).model_dump(mode="json", exclude={"reasons", "estimate"})
    created = run.events.read_bytes().partition(b"\n")[0]
    return TrackedRun(run.path, hashlib.sha256(run.name.encode() + created).hexdigest()[:16], flat(plan))


def _after(metrics: Path, step: int) -> list[StartLine | StepLine]:
    """The complete lines after a step."""
    new: list[StartLine | StepLine] = []
    for text in reversed(metrics.read_bytes().split(b"\n")[:-1] if metrics.exists() else []):
        if (line := METRICS.validate_json(text)).step <= step:
            break
        new.append(line)
    return new[::-1]


def _values(line: StartLine | StepLine, rewarded: bool) -> dict[str, float]:
    """A line under the names that are usual in the field. ``rewarded``: whether a dev loss is minus a mean reward."""
    dev = {} if line.dev_loss is None else {"eval/reward": -line.dev_loss} if rewarded else {"eval/loss": line.dev_loss}
    if isinstance(line, StartLine):
        return dev
    of_method = {f"train/{name}": value for name, value in (line.metrics or {}).items()}
    named = {"train/loss": line.loss, "train/learning_rate": line.lr, "train/grad_norm": line.grad_norm}
    return {**named, "train/tokens_per_second": line.tokens / max(line.seconds, 1e-9), **of_method, **dev}


def _conclusion(verdict: Verdict) -> dict[str, float | str]:
    scores = {"tuned": verdict.tuned, "comparator": verdict.comparator.score, "difference": verdict.difference}
    interval = {"low": verdict.interval.low, "high": verdict.interval.high}
    words = {"verdict": verdict.verdict, "metric": verdict.metric, "comparator": verdict.comparator.name}
    return {**words, **{f"verdict/{name}": value for name, value in {**scores, **interval}.items()}}


def main(folder: str, name: str) -> None:
    for variable, value in NO_TELEMETRY.items():
        os.environ.setdefault(variable, value)
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.buffer.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    follow(Run(Path(folder)), name, ended)


if __name__ == "__main__":
    main(*sys.argv[1:])
