"""Was there enough data? Trains on nested fractions of the training rows and evaluates all on the same test rows."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from tunewright.core.records import LearningCurve, NotMeasured
from tunewright.data.messages import is_reference
from tunewright.data.scores import Score
from tunewright.judge import extrapolation
from tunewright.runtime import branches, weights
from tunewright.runtime.branches import Branch
from tunewright.runtime.context import Work
from tunewright.stages.stage import Stage

FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 1.0)
SEEDS = 3


def learning_curve(work: Work, full: bool = False) -> LearningCurve:
    """Half of the rows against all of them (one seed; one extra training run, of half the steps), or four sizes with
    three seeds."""
    fractions, seeds = (FRACTIONS, SEEDS) if full else ((1 / 2, 1.0), 1)
    data, config, train = work.data, work.config.prove, work.data.every("train")
    labels = [f"{e.target if data.task.labels else ''} {is_reference(e)}" for e in (data.examples[i] for i in train)]
    clusters = [data.cluster[i] for i in train]
    parts = {(f, s): nested(train, clusters, labels, f, s) for f in fractions for s in range(seeds)}
    trained = {key: _branch(work, rows, *key) for key, rows in parts.items()}
    branches.require(work.setup, [branch for branch in trained.values() if branch])
    points = []
    for fraction in fractions:
        per_seed = [[s.score for s in _scores(work, trained[fraction, seed])] for seed in range(seeds)]
        points.append((len(parts[fraction, 0]), np.array(per_seed)))
    sizes, scores_PSR = [n for n, _ in points], [s for _, s in points]
    sign = 1.0 if data.task.metric.higher_is_better else -1.0
    tested = [data.cluster[i] for i in work.inputs.test]
    record = {
        "points": [{"rows": n, "seeds": [float(x) for x in s.mean(1)], "score": float(s.mean())} for n, s in points],
        "doubling": extrapolation.last_doubling(
            sign * scores_PSR[-1],
            sign * scores_PSR[-2],
            tested,
            config.significance,
            config.margin,
            data.task.metric.bound,
        ),
        "forecast": extrapolation.forecast(sizes, scores_PSR)
        if sign > 0
        else {"available": False, "reason": "forecasts are made only for scores between 0 and 1"},
        "recipe": "same epochs and learning rate at every size, the same test rows",
    }
    return LearningCurve.model_validate(record, strict=False)


def _branch(work: Work, rows: Sequence[int], fraction: float, seed: int) -> Branch | None:
    """``seed``: counted from the run's. None: the run itself."""
    if fraction == 1.0 and seed == 0:
        return None
    own = work.plan.seed + seed
    return branches.of_rows(work, f"{len(rows)}-rows-seed-{own}", rows, fraction, own)


def _scores(work: Work, branch: Branch | None) -> list[Score]:
    if branch is None:
        return work.answers.of(work.tuned, "test", weights.at_chosen_scale(work.run, work.plan))
    return branches.scores(work, branch, "test")


def nested(
    rows: Sequence[int], clusters: Sequence[int], labels: Sequence[str], fraction: float, seed: int
) -> tuple[int, ...]:
    """A fraction of the rows: the same fraction of each label (and of each rating), near-duplicates kept together, and
    every smaller fraction contained in every larger one.

    Clusters are ordered by a hash of the seed and the row; a cluster belongs to the label of its first row.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for i, c in enumerate(clusters):
        members[c].append(i)
    of_label: dict[str, list[list[int]]] = defaultdict(list)
    for group in members.values():
        of_label[labels[group[0]]].append(group)
    chosen: list[int] = []
    for groups in of_label.values():
        ordered = sorted(groups, key=lambda g: hashlib.sha256(f"{seed} {rows[g[0]]}".encode()).hexdigest())
        wanted, taken = fraction * sum(map(len, groups)), 0
        for group in ordered:
            if taken >= wanted - 1e-9:
                break
            chosen += group
            taken += len(group)
    return tuple(sorted(rows[i] for i in chosen))


def skip_reason(work: Work) -> str | None:
    return None if work.config.prove.evidence == "full" else "prove.evidence is not full"


def lines(record: LearningCurve | NotMeasured) -> Sequence[str]:
    if isinstance(record, NotMeasured):
        return []
    (half, whole), d = record.points[-2:], record.doubling
    return [
        f"learning curve: {half.rows} -> {whole.rows} rows gained {d.gain:+.3f} "
        f"{d.interval:+.3f}: more data of this kind {d.outcome}"
    ]


STAGE = Stage(
    name="learning_curve",
    run=lambda inputs: learning_curve(inputs.work()),
    skip_reason=skip_reason,
    lines=lines,
)
