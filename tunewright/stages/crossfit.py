"""Which rows look wrong to a model that has not seen them: the recipe on one half of the training rows judges the other half, and
that twice, cut in another way, because the mean of two judges errs less than either.

Labels: the chance of each to be wrong, from the model's shares (`noise`). Texts: how much less likely than for the base the answer became, after training on rows of
the same kind; the tail is shown. Nothing is dropped here, and test rows are not touched.
"""

from __future__ import annotations

import functools
import hashlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from tunewright.core import run_folder
from tunewright.data import label_noise
from tunewright.data.examples import Chat
from tunewright.model import kl
from tunewright.run import branches
from tunewright.run.branches import Branch
from tunewright.run.session import Session
from tunewright.tokens.sequences import flat

FOLDS, CUTS = 2, 2
Folds = tuple[dict[int, int], ...]
TAIL = 0.05


def crossfit(session: Session) -> None:
    """Writes crossfit.json, where experiments.crossfit asks for it."""
    data = session.data
    if not session.config.experiments.crossfit or session.plan.adapter.kind == "none":
        run_folder.write_json(session.run.crossfit, {"measured": False})
        return
    train = data.side("train")
    folds = tuple({i: _fold(data.cluster[i], cut) for i in train} for cut in range(CUTS))
    if any(len(set(fold.values())) < FOLDS for fold in folds):
        session.talk.warn("  cross-fit: too few independent rows to cut them in two")
        run_folder.write_json(session.run.crossfit, {"measured": False})
        return
    told: dict[str, Any] = {"measured": True, "folds": FOLDS, "cuts": CUTS}
    told |= _labels(session, folds) if data.task.metric == "accuracy" else _losses(session, folds)
    for suspect in told["suspects"]:
        suspect["where"] = data.examples[suspect["row"]].where
    run_folder.write_json(session.run.crossfit, told)
    count = len(told["suspects"])
    expected = f", some {told['expected']:.0f} of them rightly so" if count and "expected" in told else ""
    rate = ""
    if "rate" in told:
        low, high = told["interval"]
        rate = f"; wrong labels in all: {told['rate']:.1%} ({low:.1%} to {high:.1%})"
    session.talk.say(
        f"cross-fit: {count or 'none'} of {len(train)} training rows look wrong to a model that has not seen them{expected}{rate}"
    )


def _fold(cluster: int, cut: int) -> int:
    return int(hashlib.sha256(f"cut {cut} of {cluster}".encode()).hexdigest(), 16) % FOLDS


def _halves(session: Session, folds: Folds) -> Iterator[tuple[Branch, list[int]]]:
    """Each training, and the rows that it leaves out."""
    for cut, fold in enumerate(folds):
        for k in range(FOLDS):
            learned, held = ([i for i in fold if (fold[i] == k) is own] for own in (False, True))
            name = f"cut-{cut}-fold-{k}"
            yield branches.of_rows(session, name, learned, len(learned) / len(fold), session.plan.seed), held


def _labels(session: Session, folds: Folds) -> dict[str, Any]:
    names, logp = list(session.data.task.labels), {i: np.zeros(len(session.data.task.labels)) for i in folds[0]}
    for branch, held in _halves(session, folds):
        for line in branches.scores(session, branch, "train", rows=held):
            logp[line["row"]] += np.log(np.maximum([line["shares"][name] for name in names], 1e-9)) / CUTS
    rows = sorted(logp)
    given = [e.target for i in rows if isinstance(e := session.data.examples[i], Chat)]
    return label_noise.judged(label_noise.tempered(np.exp([logp[i] for i in rows]), 1.0), names, given, rows).to_json()


def _losses(session: Session, folds: Folds) -> dict[str, Any]:
    excess: dict[int, float] = defaultdict(float)
    for branch, held in _halves(session, folds):
        rows = flat(r for r in session.rendered["train"] if r.row in set(held))
        model = branches.trained(session, branch)
        with session.talk.bar(f"loss of {branch.name}", len(rows)) as note:
            watch = functools.partial(note, words="rows")
            found = kl.measure(model, rows, [1.0], session.plan.layout, watch)
        for r, gain, tokens in zip(rows, found.nats_SR[0] - found.base_nats_R, found.tokens_R, strict=True):
            excess[r.row] += float(gain) / float(tokens) / CUTS
    order = sorted(excess, key=lambda i: -excess[i])
    return {"suspects": [{"row": i, "nats_over_base": round(excess[i], 4)} for i in order[: max(1, round(TAIL * len(order)))]]}
