"""Methods that learn from good and bad answers, compared with supervised fine-tuning on the good ones alone: the same
rows of these, steps and batches. Good answers are the chosen ones of pairs, and those that are rated desirable."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from tunewright.core.config import RATED
from tunewright.core.records import Interval, PairMeasure, SftOnChosen
from tunewright.data.messages import Chat, Example, is_reference
from tunewright.data.scores import Written, mean
from tunewright.judge import statistics
from tunewright.judge.voice.separability import classifier
from tunewright.methods import kto
from tunewright.runtime import branches
from tunewright.runtime.branches import Branch
from tunewright.runtime.context import Work
from tunewright.runtime.weights import Weights
from tunewright.stages.experiments import fine_tuning
from tunewright.stages.prove import paired
from tunewright.tokens.sequences import single

Floats = NDArray[np.float64]


def measure(
    work: Work, run_R: Floats, other_R: Floats, clusters: Sequence[int], bound: float = math.inf
) -> PairMeasure:
    """Two means over rows, and their difference with an interval. ``bound``: the largest possible difference."""
    alpha, pseudo = work.config.prove.significance, math.isfinite(bound)
    low, high, _ = statistics.clustered_interval(run_R - other_R, clusters, alpha, bound, pseudo)
    return PairMeasure(
        run=float(run_R.mean()),
        other=float(other_R.mean()),
        difference=float((run_R - other_R).mean()),
        interval=Interval(low, high),
    )


def compared(work: Work, trained: Weights) -> SftOnChosen:
    """The run and the branch on the test rows. Trains the branch."""
    alone = branches.scores(work, branch(work), "test")
    tuned = work.answers.of(work.tuned, "test", trained)
    c = paired(work, tuned, alone)
    metric = PairMeasure(run=mean(tuned), other=mean(alone), difference=c.difference, interval=c.interval)
    train, test = ([work.data.examples[i] for i in work.data.every(side)] for side in ("train", "test"))
    if not all(isinstance(s.answer.output, Written) for s in tuned) or not all((bad(train), bad(test))):
        return SftOnChosen(metric=metric, verdict=c.verdict, style=None, style_accuracy=None, characters=None)
    clusters = [work.data.cluster[i] for i in work.inputs.test]
    log_odds = classifier(good(train), bad(train))
    correct = [*(log_odds(good(test)) > 0), *(log_odds(bad(test)) < 0)]
    texts = [[s.answer.text for s in scores] for scores in (tuned, alone)]
    style = [1 / (1 + np.exp(-log_odds(side))) for side in texts]
    lengths = [np.array([float(len(text)) for text in side]) for side in texts]
    return SftOnChosen(
        metric=metric,
        verdict=c.verdict,
        style=measure(work, style[0], style[1], clusters, 1.0),
        style_accuracy=float(np.mean(correct)),
        characters=measure(work, lengths[0], lengths[1], clusters),
    )


def branch(work: Work) -> Branch:
    """Supervised fine-tuning on the good answers."""
    train, dev = (
        tuple(single(r.sequences[0]) for r in rows if kto.is_desirable(r))
        for rows in (work.inputs.rows["train"], work.inputs.rows["dev"])
    )
    name = "sft_on_desirable" if work.plan.method in RATED else "sft_on_chosen"
    return fine_tuning.branch(work, name, train, dev)


def good(examples: Iterable[Example]) -> list[str]:
    return [e.target for e in examples if is_reference(e)]


def bad(examples: Iterable[Example]) -> list[str]:
    chats = [e for e in examples if isinstance(e, Chat)]
    return [e.rejected.text if e.rejected else e.target for e in chats if e.rejected or not is_reference(e)]


def line(alone: SftOnChosen, name: str) -> list[str]:
    """For the console. ``name``: what the good answers are called."""
    m = alone.metric
    printed = [
        f"  compared with fine-tuning on the {name} answers: {alone.verdict}, {m.run:.3f} and {m.other:.3f}, "
        f"difference {m.difference:+.3f} {m.interval:+.3f}"
    ]
    if style := alone.style:
        article = "an" if name[0] in "aeiou" else "a"
        printed.append(
            f"  probability of being {article} {name} answer, by a classifier: {style.run:.2f} and {style.other:.2f}, "
            f"difference {style.difference:+.2f} {style.interval:+.2f}"
        )
    return printed
