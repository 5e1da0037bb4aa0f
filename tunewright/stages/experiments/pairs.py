"""Preference rows: what training did to the answers of the test pairs, and whether fine-tuning on the chosen
answers alone, with the same rows and steps, would have done as much.

How often a model ranks a pair correctly says little about the answers that it writes (Chen et al. 2024, 2405.19534).
The chosen answers may become less probable together with the rejected ones (Razin et al. 2024, 2410.08847).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tunewright.core.config import PREFERENCE
from tunewright.core.records import Interval, NotMeasured, PairMeasure, Pairs, SftOnChosen
from tunewright.data.messages import Chat
from tunewright.data.scores import Written, mean
from tunewright.judge import statistics
from tunewright.judge.voice.separability import classifier
from tunewright.methods.pair_losses import LOSSES
from tunewright.model import likelihood
from tunewright.runtime import branches, weights
from tunewright.runtime.branches import Branch
from tunewright.runtime.context import Work
from tunewright.runtime.weights import Weights
from tunewright.stages.experiments import fine_tuning
from tunewright.stages.prove import paired
from tunewright.stages.stage import Stage
from tunewright.tokens.sequences import TrainRow, flat, single

Floats = NDArray[np.float64]


def pairs(work: Work) -> Pairs | NotMeasured:
    """Reads the test pairs; with more than plain evidence, also trains the branch."""
    trained, wanted = weights.at_chosen_scale(work.run, work.plan), set(work.inputs.test)
    rows = [r for r in work.inputs.rows["test"] if r.row in wanted]
    clusters = [work.data.cluster[r.row] for r in rows]
    if len(set(clusters)) < 2:
        return NotMeasured(reason="there are fewer than two groups of test pairs")
    tokens_R2 = np.array([[s.supervised for s in r.sequences] for r in rows], float)
    before_R2, after_R2 = (_logp(work, w, rows) for w in (weights.base(work.plan), trained))
    mean_before_R2, mean_after_R2 = before_R2 / tokens_R2, after_R2 / tokens_R2
    if LOSSES[work.plan.method].per_token:
        before_R2, after_R2 = mean_before_R2, mean_after_R2
    gain_R2 = after_R2 - before_R2

    def compared(after_R: Floats, before_R: Floats, bound: float = math.inf) -> PairMeasure:
        return _measure(work, after_R, before_R, clusters, bound)

    ranked_R, ranked_before_R = ((x[:, 0] > x[:, 1]).astype(float) for x in (after_R2, before_R2))
    chosen, rejected = (compared(mean_after_R2[:, k], mean_before_R2[:, k]) for k in (0, 1))
    return Pairs(
        pairs=len(rows),
        accuracy=compared(ranked_R, ranked_before_R, 1.0),
        implicit_accuracy=float((gain_R2[:, 0] > gain_R2[:, 1]).mean()),
        chosen_logp=chosen,
        rejected_logp=rejected,
        sft_on_chosen=None if work.config.prove.evidence == "plain" else _sft_on_chosen(work, trained),
    )


def _logp(work: Work, which: Weights, rows: Sequence[TrainRow]) -> Floats:
    """logp_R2: of the chosen and of the rejected answer of each row, in nats."""
    with work.models.at(which) as model:
        return -likelihood.nats(model, flat(rows), work.plan.layout).reshape(len(rows), 2)


def _measure(work: Work, run_R: Floats, other_R: Floats, clusters: Sequence[int], bound: float) -> PairMeasure:
    alpha, pseudo = work.config.prove.significance, math.isfinite(bound)
    low, high, _ = statistics.clustered_interval(run_R - other_R, clusters, alpha, bound, pseudo)
    return PairMeasure(
        run=float(run_R.mean()),
        other=float(other_R.mean()),
        difference=float((run_R - other_R).mean()),
        interval=Interval(low, high),
    )


def _sft_on_chosen(work: Work, trained: Weights) -> SftOnChosen:
    alone = branches.scores(work, branch(work), "test")
    tuned = work.answers.of(work.tuned, "test", trained)
    c = paired(work, tuned, alone)
    metric = PairMeasure(run=mean(tuned), other=mean(alone), difference=c.difference, interval=c.interval)
    if not all(isinstance(s.answer.output, Written) for s in tuned):
        return SftOnChosen(metric=metric, verdict=c.verdict, style=None, style_accuracy=None, characters=None)
    clusters = [work.data.cluster[i] for i in work.inputs.test]
    train, test = (
        [_answers(work, rows, side) for side in (0, 1)] for rows in (work.data.side("train"), work.inputs.test)
    )
    log_odds = classifier(train[0], train[1])
    correct = [*(log_odds(test[0]) > 0), *(log_odds(test[1]) < 0)]
    texts = [[s.answer.text for s in scores] for scores in (tuned, alone)]
    style = [1 / (1 + np.exp(-log_odds(side))) for side in texts]
    lengths = [np.array([float(len(text)) for text in side]) for side in texts]
    return SftOnChosen(
        metric=metric,
        verdict=c.verdict,
        style=_measure(work, style[0], style[1], clusters, 1.0),
        style_accuracy=float(np.mean(correct)),
        characters=_measure(work, lengths[0], lengths[1], clusters, math.inf),
    )


def branch(work: Work) -> Branch:
    """Supervised fine-tuning on the chosen answers."""
    train, dev = (tuple(single(r.sequences[0]) for r in work.inputs.rows[side]) for side in ("train", "dev"))
    return fine_tuning.branch(work, "sft_on_chosen", train, dev)


def _answers(work: Work, rows: Sequence[int], side: int) -> list[str]:
    """The chosen (0) or rejected (1) answers of rows."""
    chats = [e for i in rows if isinstance(e := work.data.examples[i], Chat)]
    return [e.target if side == 0 else e.rejected.text for e in chats if e.rejected is not None]


def skip_reason(work: Work) -> str | None:
    return None if work.plan.method in PREFERENCE else "the rows were not trained on as pairs"


def lines(record: Pairs | NotMeasured) -> Sequence[str]:
    if isinstance(record, NotMeasured):
        return []
    a, logp, alone = record.accuracy, record.chosen_logp, record.sft_on_chosen
    printed = [
        f"pairs: the chosen answer is more probable in {a.run:.0%} of {record.pairs} test pairs ({a.other:.0%} before "
        f"training); its log-probability per token went from {logp.other:.2f} to {logp.run:.2f}"
    ]
    if alone is not None:
        m = alone.metric
        low, high = m.interval
        printed.append(
            f"  compared with fine-tuning on the chosen answers: {alone.verdict}, {m.run:.3f} and {m.other:.3f}, "
            f"difference {m.difference:+.3f} [{low:+.3f}, {high:+.3f}]"
        )
        if style := alone.style:
            low, high = style.interval
            printed.append(
                f"  probability of being a chosen answer, by a classifier: {style.run:.2f} and {style.other:.2f}, "
                f"difference {style.difference:+.2f} [{low:+.2f}, {high:+.2f}]"
            )
    return printed


STAGE = Stage(name="pairs", run=lambda inputs: pairs(inputs.work()), skip_reason=skip_reason, lines=lines)
