"""Renders a run folder as one self-contained HTML page; needs no model. `templates/report.html.j2` orders the
sections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunewright.core import records, swept
from tunewright.core.config import Plan
from tunewright.core.records import (
    CONSUMER_CHECKS,
    EXPORTS,
    METRICS,
    Audit,
    ConsumerCheck,
    Event,
    ExportCheck,
    Preferences,
    ProtocolRecord,
    Receipt,
    RecipeSweep,
    ScoreLine,
    SelfTest,
    StartLine,
    StepLine,
    Training,
    Verdict,
)
from tunewright.core.run_folder import Run, write_atomic
from tunewright.data import metrics
from tunewright.report import page, sections


@dataclass(frozen=True)
class Files:
    """What the report reads from a run folder. ``exports`` and ``selftest`` may be missing; ``moved``: what differed
    when the run was resumed; ``scores``: the lines of the tuned arm and of the comparator."""

    name: str
    verdict: Verdict
    plan: Plan
    audit: Audit
    receipt: Receipt
    training: Training
    protocol: ProtocolRecord
    selftest: SelfTest | None
    exports: Sequence[ExportCheck] | None
    consumer_checks: tuple[ConsumerCheck, ...]
    preferences: Preferences | None
    sweep: RecipeSweep | None
    metrics: Sequence[StartLine | StepLine]
    moved: Sequence[str]
    scores: tuple[Sequence[ScoreLine], Sequence[ScoreLine]]


def read(run: Run) -> Files:
    """Raises RUN_DAMAGED, naming the file, if one is missing or malformed."""
    verdict = records.read(run.verdict, Verdict)
    tuned, other = (run.scores / f"{arm}.jsonl" for arm in ("tuned", verdict.comparator.name))
    return Files(
        name=run.name,
        verdict=verdict,
        plan=records.read(run.plan, Plan),
        audit=records.read(run.audit, Audit),
        receipt=records.read(run.receipt, Receipt),
        training=records.read(run.training, Training),
        protocol=records.read(run.protocol, ProtocolRecord),
        selftest=records.existing(run.selftest, SelfTest),
        exports=records.existing(run.export, EXPORTS),
        consumer_checks=records.existing(run.verify, CONSUMER_CHECKS) or (),
        preferences=records.existing(run.preferences, Preferences),
        sweep=swept.sweep_of(run),
        metrics=list(records.read_lines(run.metrics, METRICS)),
        moved=_moved(run),
        scores=(list(records.read_lines(tuned, ScoreLine)), list(records.read_lines(other, ScoreLine))),
    )


def _moved(run: Run) -> list[str]:
    """What differed when the run was resumed, such as a version, the processor or the number of threads."""
    lists = [e.facts["what"] for e in records.read_lines(run.events, Event) if e.event == "resumed_elsewhere"]
    return list(dict.fromkeys(str(what) for entries in lists if isinstance(entries, list) for what in entries))


def write(run: Run) -> None:
    """Writes report.html and data/audit.html from the files of the run folder; they state what was not measured."""
    files = read(run)
    write_atomic(run.report, report_page(files))
    write_atomic(run.audit.with_suffix(".html"), audit_page(files.audit, run.name))


def report_page(files: Files) -> str:
    """The whole report."""
    return page.render("report.html.j2", **vars(files), **_evidence(files.verdict), **_derived(files))


AUDIT_MARK = '<meta name="generator" content="tunewright check">'


def audit_page(audit: Audit, name: str) -> str:
    """The audit alone, as `tunewright check --html` writes it."""
    return page.render("audit.html.j2", audit=audit, name=name, mark=AUDIT_MARK)


def _evidence(verdict: Verdict) -> dict[str, object]:
    """What the other stages measured, by the name that the templates use; None if a stage has no result."""
    return {
        "cost": verdict.cost,
        "forgetting": sections.forgetting(verdict),
        "mitigation": verdict.mitigation,
        "curve": verdict.learning_curve,
        "pairs": verdict.pairs,
        "rewards": verdict.rewards,
        "taught": verdict.distillation,
        "crossfit": verdict.crossfit,
        "cleaning": verdict.cleaning,
        "calibration": verdict.calibration,
        "distillation": verdict.prompt_distillation,
    }


def _derived(files: Files) -> dict[str, object]:
    """What `sections` derives from the records: sentences, ordered rows, charts."""
    verdict, metric = files.verdict, files.verdict.metric
    return {
        "head": sections.head(verdict, files.plan, files.preferences, files.receipt.model.packed == "nf4"),
        "tfidf_unbeaten": sections.tfidf_unbeaten(verdict),
        "higher_is_better": metrics.METRICS[metric].higher_is_better,
        "decodings": sections.decodings(verdict),
        "closer_arms": sections.closer_arms(verdict),
        "other_metrics": sections.other_metrics(verdict),
        "changes": sections.changes(*files.scores, metric),
        "settings": sections.settings(files.plan),
        "arms_chart": sections.arms_chart(verdict),
        "pareto_chart": sections.pareto_chart(sections.forgetting(verdict), metric),
        "curve_chart": sections.curve_chart(verdict, files.audit.ceiling),
        "coverage_chart": sections.coverage_chart(verdict.calibration),
        "sweep_chart": files.sweep and sections.sweep_chart(files.sweep),
        "loss_chart": sections.loss_chart(files.metrics, files.training.best_step),
    }
