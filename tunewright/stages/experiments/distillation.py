"""Distillation from a teacher: how far the run is from it on test rows, before and after training, and whether
fine-tuning on the same rows, in as many steps, would have done as much."""

from __future__ import annotations

from collections.abc import Sequence

from tunewright.core import run_folder
from tunewright.core.records import Distillation, NotMeasured, PairMeasure, ScoreComparison
from tunewright.data.scores import Score, mean
from tunewright.methods import precomputed, teaching
from tunewright.runtime import branches, weights
from tunewright.runtime.context import Work
from tunewright.runtime.weights import Weights
from tunewright.stages.experiments import fine_tuning, sft_alone
from tunewright.stages.experiments.sft_alone import Floats
from tunewright.stages.prove import paired
from tunewright.stages.stage import Stage
from tunewright.tokens.sequences import TrainRow


def distillation(work: Work) -> Distillation | NotMeasured:
    """Reads the reference answers of the test rows with the teacher and with the models that are compared."""
    plan, rows = work.plan, work.inputs.test_rows
    assert plan.teacher is not None
    trained, before = weights.at_chosen_scale(work.run, plan), weights.before(work.run, plan)
    clusters = [work.data.cluster[r.row] for r in rows]
    if len(set(clusters)) < 2:
        return NotMeasured(reason="there are fewer than two groups of test rows")
    work.run.event("test_read", rows=len(rows), experiment="distillation")
    with work.models.at(before) as model, work.console.bar("test by teacher", len(rows), unit="rows") as tick:
        read = precomputed(model, rows, plan, tick)
    after_R = _nats(work, trained, read)

    def compared(other_R: Floats) -> PairMeasure:
        return sft_alone.measure(work, after_R, other_R, clusters)

    sft = "sft" in work.inputs.arms
    alone = compared(_nats(work, branches.trained(work, fine_tuning.answers(work)), read)) if sft else None
    return Distillation(
        teacher=plan.teacher.title,
        divergence=plan.teacher.settings.divergence,
        rows=len(rows),
        nats=compared(_nats(work, before, read)),
        nats_of_sft=alone,
        teacher_score=_score(work, "teacher"),
        sft_score=_score(work, "sft"),
    )


def _nats(work: Work, which: Weights, read: Sequence[TrainRow]) -> Floats:
    """nats_R: the divergence of each row, per token."""
    with work.models.at(which) as model:
        return teaching.measured(work.models.taught(model, work.plan), read, work.plan)


def _score(work: Work, arm: str) -> ScoreComparison | None:
    """The tuned arm compared with another, by their answers to the test rows."""
    if arm not in work.inputs.arms:
        return None
    tuned, other = (
        [Score.from_json(line) for line in run_folder.read_lines(work.run.scores / f"{name}.jsonl")]
        for name in ("tuned", arm)
    )
    c = paired(work, tuned, other)
    return ScoreComparison(
        run=mean(tuned), other=mean(other), difference=c.difference, interval=c.interval, verdict=c.verdict
    )


def skip_reason(work: Work) -> str | None:
    return None if work.plan.teacher is not None else "no teacher was learned from"


def lines(record: Distillation | NotMeasured) -> Sequence[str]:
    if isinstance(record, NotMeasured):
        return []
    printed = [
        f"distillation: {record.divergence} divergence from {record.teacher} on test rows, in nats per token: "
        f"{record.nats.other:.3f} before training, {record.nats.run:.3f} after"
        + (f", {record.nats_of_sft.other:.3f} after fine-tuning" if record.nats_of_sft else "")
    ]
    for name, c in (("the teacher", record.teacher_score), ("fine-tuning on the same rows", record.sft_score)):
        if c is not None:
            printed.append(
                f"  compared with {name}: {c.verdict}, {c.run:.3f} and {c.other:.3f}, difference {c.difference:+.3f} "
                f"{c.interval:+.3f}"
            )
    return printed


STAGE = Stage(
    name="distillation",
    run=lambda inputs: distillation(inputs.work()),
    skip_reason=skip_reason,
    lines=lines,
)
