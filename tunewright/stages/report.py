"""Report: adds what later stages measured to verdict.json, so that it holds every number; then writes the page."""

from __future__ import annotations

from tunewright.core import records, run_folder, stage_names
from tunewright.core.records import Event, Verdict
from tunewright.core.run_folder import Run
from tunewright.report import build
from tunewright.runtime.context import Work
from tunewright.stages.stage import Stage


def report(work: Work) -> None:
    """Writes verdict.json again, and report.html."""
    write(work.run)


def write(run: Run) -> None:
    """As `report`, from the run folder alone."""
    verdict = records.to_json(records.read(run.verdict, Verdict))
    assert isinstance(verdict, dict)
    copies = {name: run_folder.read_json(file) for name, file in stage_names.evidence(run.path).items()}
    reads = records.count_test_reads(records.read_lines(run.events, Event))
    records.write(run.verdict, Verdict.model_validate({**verdict, **copies, "test_reads": reads}, strict=False))
    build.write(run)


STAGE = Stage(name="report", run=lambda inputs: report(inputs.work()))
