"""What a run folder says about its progress, as events of its job and as the file of its results."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from tunewright.core import records
from tunewright.core.config import Plan
from tunewright.core.records import METRICS, StartLine, StepLine
from tunewright.core.run_folder import Run
from tunewright.server.shapes import JsonObject
from tunewright.server.store.jobs import Job, Jobs

STAGES = {
    "plan": "The plan is made: every number of the training, with its reason",
    "train": "Training has finished",
    "prove": "The held-out rows are answered by all arms",
    "export": "The adapter is exported, reloaded and compared",
}
COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")


class Follower:
    """Turns new lines of one run into events. An event is reported once, however often the run or the server starts
    again, because its source is unique."""

    def __init__(self, jobs: Jobs, job: Job, run: Run) -> None:
        self._jobs, self._job, self._run = jobs, job, run
        self._sizes: dict[Path, int] = {}
        self._seen: set[bytes] = set()
        self._steps = 0

    def look(self) -> None:
        for line in self._new_lines(self._run.events):
            self._report(json.loads(line))
        for line in self._new_lines(self._run.metrics):
            if not self._steps and self._run.plan.exists():
                self._steps = records.read(self._run.plan, Plan).steps
            step = METRICS.validate_json(line)
            if isinstance(step, StepLine):
                message, data = step_message(step, self._steps)
                self._jobs.event(self._job.id, f"step-{step.step}", message, data=data)

    def _report(self, line: JsonObject) -> None:
        if line.get("event") == "engine_away":
            message = "vLLM cannot be reached; the adapter is published when it is back"
            self._jobs.event(self._job.id, f"engine-away-{line.get('time')}", message, "warn")
        if line.get("event") == "published":
            self._jobs.event(self._job.id, "published", "vLLM gives the model's answers: the adapter is published")
        stage = str(line.get("event", "")).removesuffix("_finished")
        if line.get("event") == f"{stage}_finished" and stage in STAGES:
            self._jobs.event(self._job.id, f"stage-{stage}", STAGES[stage])

    def _new_lines(self, file: Path) -> Iterator[bytes]:
        """Complete lines. One is yielded again if what was done with it failed, say on a full disk."""
        size = file.stat().st_size if file.exists() else 0
        if size == self._sizes.get(file, 0):
            return
        for line in file.read_bytes().split(b"\n")[:-1]:
            if line.strip() and line not in self._seen:
                yield line
                self._seen.add(line)
        self._sizes[file] = size


def step_message(step: StepLine, steps: int) -> tuple[str, JsonObject]:
    """As OpenAI words it, and the numbers."""
    valid = "" if step.dev_loss is None else f", validation loss={step.dev_loss:.2f}"
    data = {"step": step.step, "total_steps": steps, "train_loss": round(step.loss, 5)}
    if step.dev_loss is not None:
        data["valid_loss"] = data["full_valid_loss"] = round(step.dev_loss, 5)
    return f"Step {step.step}/{steps}: training loss={step.loss:.2f}{valid}", data


def results_csv(run: Run) -> bytes:
    """OpenAI's file of results: a line for each step. What training does not measure is empty."""
    out = io.StringIO(newline="")
    table = csv.writer(out, lineterminator="\n")
    table.writerow(COLUMNS)
    for line in records.read_lines(run.metrics, METRICS):
        if not isinstance(line, StartLine):
            dev = "" if line.dev_loss is None else round(line.dev_loss, 5)
            table.writerow((line.step, round(line.loss, 5), "", dev, ""))
    return out.getvalue().encode()
