"""Follows a run for a tracker, in a process of its own: ``python -m tunewright.track.follow RUN TRACKER``.

It reads the run folder while the run writes it, and ends when its standard input ends, that is, with the process that
started it, however that ends. What a tracker does, or fails to do, cannot slow down or stop training.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from tunewright.core import records, run_folder
from tunewright.core.config import Plan, flat
from tunewright.core.console import Console
from tunewright.core.records import METRICS, StartLine, StepLine, Verdict
from tunewright.core.run_folder import Run
from tunewright.track.trackers import TRACKERS, TrackedRun, Tracker

POLL_SECONDS = 1.0
LAST_SECONDS = 60.0


@contextmanager
def following(run: Run, names: Sequence[str], console: Console) -> Iterator[None]:
    """Within, processes follow the run, one for each tracker. A failure of theirs is a warning."""
    folder, started = run.path / "track", []
    for name in names:
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "tunewright.track.follow", str(run.path), name]
        with open(folder / f"{name}.log", "wb") as log:
            streams = {"stdin": subprocess.PIPE, "stdout": log, "stderr": log}
            started.append(subprocess.Popen(command, start_new_session=True, **streams))
    try:
        yield
    finally:
        for process in started:
            assert process.stdin is not None
            process.stdin.close()
        for name, process in zip(names, started, strict=True):
            try:
                process.wait(LAST_SECONDS)
            except subprocess.TimeoutExpired:
                console.warn(f"track: {name} is still sending, in process {process.pid}")
            if process.returncode:
                log = folder / f"{name}.log"
                last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"])[-1]
                console.warn(f"track: {name} failed: {last} (all of it: {log}); the numbers are in {run.metrics}")


def follow(run: Run, name: str, ended: threading.Event) -> None:
    """Send what the run writes until ``ended``. What was sent is noted first: a kill can lose a point, not send it
    twice."""
    note = run.path / "track" / f"{name}.json"
    with FileLock(note.with_suffix(".lock"), mode=0o600):
        sent = run_folder.read_json(note) if note.exists() else {"step": -1, "verdict": "", "report": ""}
        tracker: Tracker | None = None

        def opened(**now: object) -> Tracker:
            nonlocal tracker
            tracker = tracker or TRACKERS[name](_tracked(run))
            sent.update(now)
            run_folder.write_json(note, sent)
            return tracker

        over = False
        while not over:
            over = ended.wait(POLL_SECONDS)
            for line in _after(run.metrics, sent["step"]):
                opened(step=line.step).log(line.step, _numbers(line))
        step = max(sent["step"], 0)
        if (digest := _digest(run.verdict)) != sent["verdict"]:
            opened(verdict=digest).conclude(step, *_conclusion(records.read(run.verdict, Verdict)))
        if (digest := _digest(run.report)) != sent["report"]:
            opened(report=digest).attach(run.report)
        if tracker:
            tracker.close(run.report.exists())


def _tracked(run: Run) -> TrackedRun:
    plan = records.read(run.plan, Plan).model_dump(mode="json", exclude={"reasons", "estimate"})
    first = run.events.read_bytes().partition(b"\n")[0]
    return TrackedRun(run.path, hashlib.sha256(run.name.encode() + first).hexdigest()[:16], flat(plan))


def _after(metrics: Path, step: int) -> list[StartLine | StepLine]:
    """The complete lines after a step."""
    new: list[StartLine | StepLine] = []
    for text in reversed(metrics.read_bytes().split(b"\n")[:-1] if metrics.exists() else []):
        line = METRICS.validate_json(text)
        if line.step <= step:
            break
        new.append(line)
    return new[::-1]


def _numbers(line: StartLine | StepLine) -> dict[str, float]:
    dev = {} if line.dev_loss is None else {"eval/loss": line.dev_loss}
    if isinstance(line, StartLine):
        return dev
    return {
        "train/loss": line.loss,
        "train/learning_rate": line.lr,
        "train/grad_norm": line.grad_norm,
        "train/tokens_per_second": line.tokens / max(line.seconds, 1e-9),
        **{f"train/{name}": value for name, value in (line.metrics or {}).items()},
        **dev,
    }


def _conclusion(verdict: Verdict) -> tuple[dict[str, float], dict[str, str]]:
    numbers = {
        "verdict/tuned": verdict.tuned,
        "verdict/comparator": verdict.comparator.score,
        "verdict/difference": verdict.difference,
        "verdict/difference_low": verdict.interval.low,
        "verdict/difference_high": verdict.interval.high,
        "verdict/rows": float(verdict.n),
    }
    return numbers, {"verdict": verdict.verdict, "metric": verdict.metric, "comparator": verdict.comparator.name}


def _digest(file: Path) -> str:
    return run_folder.sha256(file) if file.exists() else ""


def main(folder: str, name: str) -> None:
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.buffer.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    follow(Run(Path(folder)), name, ended)


if __name__ == "__main__":
    main(*sys.argv[1:])
