"""Run folder -> one self-contained HTML page; needs no model. What the page says in which order:
`templates/report.html.j2`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunewright.core.run_folder import Run, read_json, read_lines, write_atomic
from tunewright.report import page, sections
from tunewright.report.page import Record, at


@dataclass(frozen=True)
class Files:
    """What the report reads of a run folder. ``exports`` and ``selftest`` may be missing; ``moved``: what differed
    where the run was continued; ``scores``: the lines of the tuned arm and of the comparator."""

    name: str
    verdict: Record
    plan: Record
    audit: Record
    receipt: Record
    training: Record
    protocol: Record
    selftest: Record | None
    exports: Sequence[Record] | None
    metrics: Sequence[Record]
    moved: Sequence[str]
    scores: tuple[Sequence[Record], Sequence[Record]]


def write(run: Run) -> None:
    """Writes report.html and data/audit.html from the files of the run folder; what was not measured is named as
    such."""
    verdict, audit, events = read_json(run.verdict), read_json(run.audit), list(read_lines(run.events))
    comparator = at(verdict, "comparator.name")
    files = Files(
        name=run.name,
        verdict=verdict,
        plan=read_json(run.plan),
        audit=audit,
        receipt=read_json(run.receipt),
        training=read_json(run.training),
        protocol=read_json(run.protocol),
        selftest=read_json(run.selftest) if run.selftest.exists() else None,
        exports=read_json(run.export) if run.export.exists() else None,
        metrics=list(read_lines(run.metrics)),
        moved=list(dict.fromkeys(x for e in events if at(e, "event") == "went_on_elsewhere" for x in at(e, "what"))),
        scores=(list(read_lines(run.scores / "tuned.jsonl")), list(read_lines(run.scores / f"{comparator}.jsonl"))),
    )
    write_atomic(run.report, report_page(files))
    write_atomic(run.audit.with_suffix(".html"), audit_page(audit, run.name))


def report_page(files: Files) -> str:
    """The whole report."""
    return page.render("report.html.j2", **vars(files), **_evidence(files.verdict), **_derived(files))


def audit_page(audit: Record, name: str) -> str:
    """The audit alone, as `tunewright check --html` writes it."""
    return page.render("audit.html.j2", audit=audit, name=name)


def _evidence(verdict: Record) -> dict[str, object]:
    """What stages beside the verdict measured, by the name that the templates use; None where a stage left nothing."""
    names = ("cost", "mitigation", "crossfit", "cleaning", "calibration")
    found = {name: at(verdict, name, None) for name in names}
    return {
        **found,
        "curve": at(verdict, "learning_curve", None),
        "distillation": at(verdict, "prompt_distillation", None),
        "forgetting": sections.forgetting(verdict),
    }


def _derived(files: Files) -> dict[str, object]:
    """What `sections` makes of the records: sentences, ordered rows, charts."""
    verdict, metric = files.verdict, at(files.verdict, "metric")
    return {
        "head": sections.head(verdict, files.plan),
        "beats_us": sections.beats_us(verdict),
        "other_metrics": sections.other_metrics(verdict),
        "changes": sections.changes(*files.scores, metric),
        "settings": sections.settings(files.plan),
        "arms_chart": sections.arms_chart(verdict),
        "pareto_chart": sections.pareto_chart(sections.forgetting(verdict), metric),
        "curve_chart": sections.curve_chart(at(verdict, "learning_curve", None), verdict, at(files.audit, "ceiling")),
        "coverage_chart": sections.coverage_chart(at(verdict, "calibration", None)),
        "loss_chart": sections.loss_chart(files.metrics, at(files.training, "best_step")),
    }
