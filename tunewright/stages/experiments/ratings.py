"""Rated rows: what training did to the desirable and undesirable answers of the test rows, and whether fine-tuning on
the desirable ones alone, in the same steps, would have done as much."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunewright.core.records import PairMeasure, Ratings
from tunewright.core.words import counted
from tunewright.data.text import content_hash
from tunewright.methods import kto
from tunewright.model import likelihood
from tunewright.runtime import weights
from tunewright.runtime.context import Work
from tunewright.runtime.weights import Weights
from tunewright.stages.experiments import sft_alone
from tunewright.stages.experiments.sft_alone import Floats
from tunewright.tokens import packing
from tunewright.tokens.sequences import TrainRow, flat


def ratings(work: Work) -> Ratings:
    """Reads the test answers of both kinds; with more than plain evidence, also trains the branch."""
    trained, rows = weights.at_chosen_scale(work.run, work.plan), _rows(work)
    work.run.event("test_read", rows=len(rows), experiment="ratings")
    desirable_R = np.array([kto.is_desirable(r) for r in rows])
    tokens_R = np.array([r.supervised for r in rows], float)
    before_R, after_R = (_logp(work, w, rows) for w in (weights.base(work.plan), trained))
    clusters = np.array([work.data.cluster[r.row] for r in rows])
    enough = all(len(set(clusters[desirable_R == kind])) > 1 for kind in (True, False))

    def of_kind(kind: bool) -> PairMeasure | None:
        own = desirable_R == kind
        mean_after, mean_before = ((x / tokens_R)[own] for x in (after_R, before_R))
        return sft_alone.measure(work, mean_after, mean_before, clusters[own].tolist()) if enough else None

    accuracy = implicit = None
    if enough:
        ranked_after, ranked_before = (ranked(x / tokens_R, desirable_R) for x in (after_R, before_R))
        accuracy = sft_alone.measure(work, ranked_after, ranked_before, clusters.tolist(), 1.0)
        implicit = float(ranked(after_R - before_R, desirable_R).mean())
    return Ratings(
        desirable=int(desirable_R.sum()),
        undesirable=int((~desirable_R).sum()),
        accuracy=accuracy,
        implicit_accuracy=implicit,
        desirable_logp=of_kind(True),
        undesirable_logp=of_kind(False),
        one_sided_steps=one_sided_steps(work),
        sft_on_desirable=None if work.config.prove.evidence == "plain" else sft_alone.compared(work, trained),
    )


def _rows(work: Work) -> list[TrainRow]:
    """The desirable rows of the verdict, and at most as many others as the verdict may have rows."""
    wanted, limit, rows = set(work.inputs.test), work.config.prove.max_test_rows, work.inputs.rows["test"]
    good, bad = ([r for r in rows if kto.is_desirable(r) is kind] for kind in (True, False))
    bad.sort(key=lambda r: content_hash(work.data.examples[r.row].question))
    return [*(r for r in good if r.row in wanted), *bad[:limit]]


def _logp(work: Work, which: Weights, rows: Sequence[TrainRow]) -> Floats:
    """logp_R of each answer, in nats."""
    with work.models.at(which) as model:
        return -np.asarray(likelihood.nats(model, flat(rows), work.plan.layout), float)


def ranked(score_R: Floats, desirable_R: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Floats:
    """Numbers of the rows whose mean is the probability that a desirable row has a higher score than an undesirable one
    (the area under the ROC curve), and whose spread is its error (DeLong et al. 1988; Obuchowski 1997 for groups)."""
    good, bad = score_R[desirable_R], score_R[~desirable_R]
    higher_GB = (good[:, None] > bad) + 0.5 * (good[:, None] == bad)
    area, value_R = higher_GB.mean(), np.empty(len(score_R))
    value_R[desirable_R] = area + len(score_R) / len(good) * (higher_GB.mean(1) - area)
    value_R[~desirable_R] = area + len(score_R) / len(bad) * (higher_GB.mean(0) - area)
    return value_R


def one_sided_steps(work: Work) -> int:
    """The steps of the plan whose rows are all of one kind."""
    plan, kinds = work.plan, [kto.is_desirable(r) for r in work.inputs.rows["train"]]
    steps = (packing.step_rows(len(kinds), plan.batch_size, plan.seed, step) for step in range(plan.steps))
    return sum(len({kinds[i] for i in rows}) == 1 for rows in steps)


def lines(record: Ratings) -> Sequence[str]:
    printed = []
    if record.accuracy and record.desirable_logp:
        a, logp = record.accuracy, record.desirable_logp
        printed.append(
            f"ratings: a desirable answer is more probable than an undesirable one in {a.run:.0%} of cases "
            f"({a.other:.0%} before training), on {record.desirable} and {record.undesirable} test answers; the "
            f"log-probability of desirable ones per token went from {logp.other:.2f} to {logp.run:.2f}"
        )
    if record.one_sided_steps:
        steps = counted(record.one_sided_steps, "step")
        printed.append(f"  {steps} had rows of one kind only; a larger train.batch_size mixes them")
    if record.sft_on_desirable is not None:
        printed += sft_alone.line(record.sft_on_desirable, "desirable")
    return printed
