"""Was the data enough? The recipe on nested shares of the training rows, all judged on the same test rows."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from tunewright.core import run_folder
from tunewright.data.scores import Score
from tunewright.judge import extrapolation
from tunewright.run import branches
from tunewright.run.session import Session

SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)
SEEDS = 3


def curve(session: Session, full: bool) -> None:
    """Writes curve.json: half the rows against all of them (one seed, half a training more), or four sizes with three seeds."""
    shares, seeds = (SHARES, SEEDS) if full else ((1 / 2, 1.0), 1)
    train = session.data.side("train")
    clusters = [session.data.cluster[i] for i in session.rows("test")]
    labels = [session.data.examples[i].target if session.data.task.labels else "" for i in train]
    points = []
    for share in shares:
        per_seed = []
        for seed in range(seeds):
            rows = nested(train, [session.data.cluster[i] for i in train], labels, share, seed)
            per_seed.append([s.score for s in _scores(session, rows, share, session.plan.seed + seed)])
        points.append((len(rows), np.array(per_seed)))
    sign = 1.0 if session.data.task.metric.higher_is_better else -1.0
    asked = session.config.prove
    sizes, scores_PSR = [n for n, _ in points], [s for _, s in points]
    found: dict[str, Any] = {
        "points": [{"rows": n, "seeds": [float(x) for x in s.mean(1)], "score": float(s.mean())} for n, s in points],
        "doubling": extrapolation.last_doubling(
            sign * scores_PSR[-1], sign * scores_PSR[-2], clusters, asked.significance, asked.margin
        ),
        "forecast": extrapolation.forecast(sizes, scores_PSR)
        if sign > 0
        else {"told": False, "why": "forecasts are made for scores between 0 and 1"},
        "recipe": "same epochs and rate at every size, the same test rows",
    }
    run_folder.write_json(session.run.curve, found)
    told, d = session.talk.say, found["doubling"]
    told(
        f"curve: {sizes[-2]} -> {sizes[-1]} rows gained {d['gain']:+.3f} [{d['interval'][0]:+.3f}, {d['interval'][1]:+.3f}]: "
        f"more data of this kind {d['word']}"
    )


def _scores(session: Session, rows: tuple[int, ...], share: float, seed: int) -> list[Score]:
    if share == 1.0 and seed == session.plan.seed:  # the run itself
        return [Score.from_json(line) for line in run_folder.read_lines(session.run.scores / "tuned.jsonl")]
    return branches.scores(session, branches.of_rows(session, f"{len(rows)}-rows-seed-{seed}", rows, share, seed), "test")


def nested(rows: Sequence[int], clusters: Sequence[int], labels: Sequence[str], share: float, seed: int) -> tuple[int, ...]:
    """A share of the rows: of each label alike, near-duplicates together, and every smaller share within every larger one.

    Clusters come in the order of a hash of the seed; a cluster belongs to the label of its first row.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for i, c in enumerate(clusters):
        members[c].append(i)
    of_label: dict[str, list[list[int]]] = defaultdict(list)
    for group in members.values():
        of_label[labels[group[0]]].append(group)
    found: list[int] = []
    for groups in of_label.values():
        ordered = sorted(groups, key=lambda g: hashlib.sha256(f"{seed} {rows[g[0]]}".encode()).hexdigest())
        wanted, taken = share * sum(map(len, groups)), 0
        for group in ordered:
            if taken >= wanted - 1e-9:
                break
            found += group
            taken += len(group)
    return tuple(sorted(rows[i] for i in found))
