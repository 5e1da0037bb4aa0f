"""Preference rows: what training did to the answers of the test pairs, and whether fine-tuning on the chosen
answers alone, with the same rows and steps, would have done as much.

How often a model ranks a pair correctly says little about the answers that it writes (Chen et al. 2024, 2405.19534).
The chosen answers may become less probable together with the rejected ones (Razin et al. 2024, 2410.08847).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tunewright.core.config import PREFERENCE, RATED
from tunewright.core.records import NotMeasured, PairMeasure, Pairs, Ratings
from tunewright.methods.pair_losses import LOSSES
from tunewright.model import likelihood
from tunewright.runtime import weights
from tunewright.runtime.context import Work
from tunewright.runtime.weights import Weights
from tunewright.stages.experiments import ratings, sft_alone
from tunewright.stages.experiments.sft_alone import Floats
from tunewright.stages.stage import Stage
from tunewright.tokens.sequences import TrainRow, flat


def pairs(work: Work) -> Pairs | Ratings | NotMeasured:
    """Reads the test pairs; with more than plain evidence, also trains the branch. Pairs that were trained on as two
    rated rows are measured as such."""
    if work.plan.method in RATED:
        return ratings.ratings(work)
    trained, rows = weights.at_chosen_scale(work.run, work.plan), work.inputs.test_rows
    clusters = [work.data.cluster[r.row] for r in rows]
    if len(set(clusters)) < 2:
        return NotMeasured(reason="there are fewer than two groups of test pairs")
    work.run.event("test_read", rows=len(rows), experiment="pairs")
    tokens_R2 = np.array([[s.supervised for s in r.sequences] for r in rows], float)
    before_R2, after_R2 = (_logp(work, w, rows) for w in (weights.before(work.run, work.plan), trained))
    mean_before_R2, mean_after_R2 = before_R2 / tokens_R2, after_R2 / tokens_R2
    if LOSSES[work.plan.method].per_token:
        before_R2, after_R2 = mean_before_R2, mean_after_R2
    gain_R2 = after_R2 - before_R2

    def compared(after_R: Floats, before_R: Floats, bound: float = math.inf) -> PairMeasure:
        return sft_alone.measure(work, after_R, before_R, clusters, bound)

    ranked_R, ranked_before_R = ((x[:, 0] > x[:, 1]).astype(float) for x in (after_R2, before_R2))
    chosen, rejected = (compared(mean_after_R2[:, k], mean_before_R2[:, k]) for k in (0, 1))
    return Pairs(
        pairs=len(rows),
        accuracy=compared(ranked_R, ranked_before_R, 1.0),
        implicit_accuracy=float((gain_R2[:, 0] > gain_R2[:, 1]).mean()),
        chosen_logp=chosen,
        rejected_logp=rejected,
        sft_on_chosen=None if work.config.prove.evidence == "plain" else sft_alone.compared(work, trained),
    )


def _logp(work: Work, which: Weights, rows: Sequence[TrainRow]) -> Floats:
    """logp_R2: of the chosen and of the rejected answer of each row, in nats."""
    with work.models.at(which) as model:
        return -likelihood.nats(model, flat(rows), work.plan.layout).reshape(len(rows), 2)


def skip_reason(work: Work) -> str | None:
    if work.plan.method in (*PREFERENCE, *RATED):
        return None
    return "the rows were not trained on as pairs"


def lines(record: Pairs | Ratings | NotMeasured) -> Sequence[str]:
    if isinstance(record, NotMeasured):
        return []
    if isinstance(record, Ratings):
        return ratings.lines(record)
    a, logp, alone = record.accuracy, record.chosen_logp, record.sft_on_chosen
    printed = [
        f"pairs: the chosen answer is more probable in {a.run:.0%} of {record.pairs} test pairs ({a.other:.0%} before "
        f"training); its log-probability per token went from {logp.other:.2f} to {logp.run:.2f}"
    ]
    if alone is not None:
        printed += sft_alone.line(alone, "chosen")
    return printed


STAGE = Stage(name="pairs", run=lambda inputs: pairs(inputs.work()), skip_reason=skip_reason, lines=lines)
