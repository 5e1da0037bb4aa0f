"""Run folder -> one self-contained HTML page; needs no model. What the page says in which order: `templates/report.html.j2`."""

from __future__ import annotations

from tunewright.core.run_folder import Run, read_json, read_lines, write_atomic
from tunewright.report import page, sections
from tunewright.report.page import Record, at


def write(run: Run) -> None:
    """Writes report.html and data/audit.html from the files of the run folder; what was not measured is named as such."""
    write_atomic(run.report, page.render("report.html.j2", **_values(run)))
    write_atomic(run.audit.with_suffix(".html"), audit_page(read_json(run.audit), run.name))


def audit_page(audit: Record, name: str) -> str:
    """The audit alone, as `tunewright check --html` writes it."""
    return page.render("audit.html.j2", audit=audit, name=name)


def _values(run: Run) -> dict[str, object]:
    """Everything that the report's templates name: the run's records, and what `sections` makes of them."""
    verdict, plan, audit, training = (read_json(file) for file in (run.verdict, run.plan, run.audit, run.training))
    forgetting, curve, calibration = (at(verdict, name, None) for name in ("retention", "curve", "calibration"))
    comparator = at(verdict, "comparator.name")
    tuned, other = (list(read_lines(run.scores / f"{arm}.jsonl")) for arm in ("tuned", comparator))
    moved = [what for event in read_lines(run.events) if event["event"] == "went_on_elsewhere" for what in event["what"]]
    return {
        "name": run.name,
        "verdict": verdict,
        "plan": plan,
        "audit": audit,
        "training": training,
        "receipt": read_json(run.receipt),
        "protocol": read_json(run.protocol),
        "selftest": at(read_json(run.selftest), "findings") if run.selftest.exists() else [],
        "exports": read_json(run.export) if run.export.exists() else None,
        "cost": at(verdict, "cost", None),
        "forgetting": forgetting,
        "mitigation": at(verdict, "mitigation", None),
        "curve": curve,
        "crossfit": at(verdict, "crossfit", None),
        "cleaning": at(verdict, "cleaning", None),
        "calibration": calibration,
        "distillation": at(verdict, "internalised", None),
        "head": sections.head(verdict, plan),
        "beats_us": sections.beats_us(verdict),
        "other_metrics": sections.other_metrics(verdict),
        "changes": sections.changes(tuned, other, at(verdict, "metric")),
        "settings": sections.settings(plan),
        "moved": list(dict.fromkeys(moved)),
        "arms_chart": sections.arms_chart(verdict),
        "pareto_chart": sections.pareto_chart(forgetting, at(verdict, "metric")) if forgetting is not None else None,
        "curve_chart": sections.curve_chart(curve, verdict, at(audit, "ceiling")) if curve is not None else None,
        "coverage_chart": sections.coverage_chart(calibration) if calibration is not None else None,
        "loss_chart": sections.loss_chart(list(read_lines(run.metrics)), at(training, "best_step")),
    }
