"""Which rows look wrong to a model that has not seen them: the recipe on one half of the training rows judges the other.

Labels: the chance of each to be wrong, from the model's shares (`noise`). Texts: how much less likely than for the base the answer became, after training on rows of
the same kind; the tail is shown. Nothing is dropped here, and test rows are not touched.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import numpy as np

from tunewright import branches, divergence, noise, runs
from tunewright.examples import Chat
from tunewright.session import Session

FOLDS = 2
TAIL = 0.05


def crossfit(session: Session) -> None:
    """Writes crossfit.json, where prove.crossfit asks for it."""
    data = session.data
    if not session.config.prove.crossfit or session.plan.adapter.kind == "none":
        runs.write_json(session.run.crossfit, {"measured": False})
        return
    train = data.side("train")
    fold = {i: int(hashlib.sha256(f"fold {data.cluster[i]}".encode()).hexdigest(), 16) % FOLDS for i in train}
    told: dict[str, Any] = {"measured": True, "folds": FOLDS}
    if data.task.metric == "accuracy":
        told |= _labels(session, fold)
    else:
        told |= _losses(session, fold)
    for suspect in told["suspects"]:
        suspect["where"] = data.examples[suspect["row"]].where
    runs.write_json(session.run.crossfit, told)
    expected = f", some {told['expected']:.0f} of them rightly so" if "expected" in told else ""
    session.talk.say(
        f"cross-fit: {len(told['suspects'])} of {len(train)} training rows look wrong to a model that has not seen them{expected}"
    )


def _branch(session: Session, fold: dict[int, int], k: int) -> branches.Branch:
    learned = [i for i in fold if fold[i] != k]
    return branches.of_rows(session, f"fold-{k}", learned, len(learned) / len(fold), session.plan.seed)


def _labels(session: Session, fold: dict[int, int]) -> dict[str, Any]:
    names, shares = list(session.data.task.labels), {}
    for k in range(FOLDS):
        held = [i for i in fold if fold[i] == k]
        for line in branches.scores(session, _branch(session, fold, k), "train", rows=held):
            shares[line["row"]] = [line["shares"][name] for name in names]
    rows = sorted(shares)
    given = [e.target for i in rows if isinstance(e := session.data.examples[i], Chat)]
    return noise.judged(np.array([shares[i] for i in rows]), names, given, rows).to_json()


def _losses(session: Session, fold: dict[int, int]) -> dict[str, Any]:
    excess: dict[int, float] = {}
    for k in range(FOLDS):
        held = {i for i in fold if fold[i] == k}
        rows = [r for r in session.rendered["train"] if r.row in held]
        model = branches.trained(session, _branch(session, fold, k))
        with session.talk.bar(f"loss of fold {k}", len(rows)) as note:
            watch = functools.partial(note, words="rows")
            found = divergence.measure(model, rows, [1.0], session.plan.layout, watch)
        for r, gain, tokens in zip(rows, found.nats_SR[0] - found.base_nats_R, found.tokens_R, strict=True):
            excess[r.row] = excess.get(r.row, 0.0) + float(gain) / float(tokens)
    order = sorted(excess, key=lambda i: -excess[i])
    return {"suspects": [{"row": i, "nats_over_base": round(excess[i], 4)} for i in order[: max(1, round(TAIL * len(order)))]]}
