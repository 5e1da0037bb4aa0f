"""Which rows look wrong to a model that was not trained on them? A model trained on one half of the training rows
scores the other half; this is done for two different splits, because the mean of two scores errs less than either.

Labels: the probability that each is wrong (`data.label_noise`). Texts: how much less probable than under the base the
answer became after training on rows of the same kind; the tail is reported. Nothing is dropped here, and test rows are
not used.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from tunewright.core.records import LabelCrossfit, LabelSuspect, NotMeasured, TextCrossfit, TextSuspect
from tunewright.data import label_noise
from tunewright.data.scores import LabelProbs
from tunewright.model import kl
from tunewright.runtime import branches
from tunewright.runtime.branches import Branch
from tunewright.runtime.context import Work
from tunewright.stages.stage import Stage
from tunewright.tokens.sequences import flat

FOLDS, CUTS = 2, 2
Folds = tuple[dict[int, int], ...]  # per cut: row -> fold
TAIL = 0.05  # fraction of the rows that is reported
MIN_PROB = 1e-9


def crossfit(work: Work) -> LabelCrossfit | TextCrossfit | NotMeasured:
    """Trains `FOLDS` x `CUTS` branches."""
    train, cluster = work.inputs.short_enough(work.data.side("train")), work.data.cluster
    folds = tuple({i: _fold(cluster[i], cut) for i in train} for cut in range(CUTS))
    if any(len(set(fold.values())) < FOLDS for fold in folds):
        reason = "too few independent rows to split in two"
        work.console.warn(f"  cross-fit: {reason}")
        return NotMeasured(reason=reason)
    return _labels(work, folds) if work.data.task.metric.by_label else _texts(work, folds)


def _fold(cluster: int, cut: int) -> int:
    return int(hashlib.sha256(f"cut {cut} of {cluster}".encode()).hexdigest(), 16) % FOLDS


def _halves(work: Work, folds: Folds) -> list[tuple[Branch, list[int]]]:
    """Each branch, trained, and the rows that it leaves out."""
    halves = []
    for cut, fold in enumerate(folds):
        for k in range(FOLDS):
            kept, held_out = ([i for i in fold if (fold[i] == k) is own] for own in (False, True))
            branch = branches.of_rows(work, f"cut-{cut}-fold-{k}", kept, len(kept) / len(fold), work.plan.seed)
            halves.append((branch, held_out))
    branches.require(work.setup, [branch for branch, _ in halves])
    return halves


def _labels(work: Work, folds: Folds) -> LabelCrossfit:
    names = list(work.data.task.labels)
    logp = {i: np.zeros(len(names)) for i in folds[0]}
    for branch, held_out in _halves(work, folds):
        for score in branches.scores(work, branch, "train", rows=held_out):
            assert isinstance(score.answer.output, LabelProbs)
            assert score.row is not None
            probs = score.answer.output.probs
            logp[score.row] += np.log(np.maximum([probs[name] for name in names], MIN_PROB)) / CUTS
    rows = sorted(logp)
    labels = [work.data.examples[i].target for i in rows]
    prob_RL = label_noise.tempered(np.exp([logp[i] for i in rows]), 1.0)
    noise = label_noise.estimate(prob_RL, names, labels, rows)
    where = work.data.examples
    suspects = tuple(LabelSuspect(**vars(s), where=where[s.row].where) for s in noise.suspects)
    facts = {**noise.to_json(), "suspects": suspects}
    return LabelCrossfit.model_validate({"folds": FOLDS, "cuts": CUTS, **facts}, strict=False)


def _texts(work: Work, folds: Folds) -> TextCrossfit:
    excess: dict[int, float] = defaultdict(float)
    for branch, held_out in _halves(work, folds):
        rows = flat(r for r in work.inputs.rows["train"] if r.row in set(held_out))
        answering = branches.trained(work, branch)
        with (
            work.models.at(answering) as model,
            work.console.bar(f"loss of {branch.name}", len(rows), unit="rows") as tick,
        ):
            d = kl.measure(model, rows, [1.0], work.plan.layout, tick)
        for r, gain, tokens in zip(rows, d.nats_SR[0] - d.base_nats_R, d.tokens_R, strict=True):
            excess[r.row] += float(gain) / float(tokens) / CUTS
    worst = sorted(excess, key=lambda i: -excess[i])[: max(1, round(TAIL * len(excess)))]
    where = work.data.examples
    suspects = tuple(TextSuspect(row=i, nats_over_base=round(excess[i], 4), where=where[i].where) for i in worst)
    return TextCrossfit(folds=FOLDS, cuts=CUTS, suspects=suspects)


def skip_reason(work: Work) -> str | None:
    return None if work.config.experiments.crossfit else "experiments.crossfit is off"


def lines(record: LabelCrossfit | TextCrossfit | NotMeasured) -> Sequence[str]:
    if isinstance(record, NotMeasured):
        return []
    count = len(record.suspects)
    text = f"cross-fit: {count or 'no'} training rows look wrong to a model that was not trained on them"
    if isinstance(record, LabelCrossfit):
        low, high = record.interval
        text += f"; about {record.expected:.0f} of these are expected to be truly wrong" if count else ""
        text += f"; wrong labels overall: {record.rate:.1%} ({low:.1%} to {high:.1%})"
    return [text]


STAGE = Stage(
    name="crossfit",
    run=lambda inputs: crossfit(inputs.work()),
    skip_reason=skip_reason,
    lines=lines,
)
