"""Two ways to forget less, trained beside the run and measured: a lower rate, and replay of what the base itself says.

Replay: the base answers prompts that have nothing to do with the task, and its shares there are targets beside the task's rows, so
the loss holds the KL to the base on that text (self-generated replay, 2605.26097). Nothing here reads test.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from tunewright.core import run_folder
from tunewright.data.examples import Message
from tunewright.data.metrics import HIGHER_IS_BETTER
from tunewright.judge import probes
from tunewright.methods import distill
from tunewright.model import adapters, generate, kl
from tunewright.run import branches
from tunewright.run.branches import Branch
from tunewright.run.session import Session
from tunewright.stages import forgetting, prove
from tunewright.tokens import rendering
from tunewright.tokens.sequences import TrainRow, after

ASKS = (
    "Tell me about a {}.",
    "What would you do with a {}?",
    "Describe a {} to a child.",
    "Write two sentences in which a {} appears.",
)
REPLAY_TOKENS = 48
SLOWER = 3.0
RULE = "the least KL on generic text among those whose dev score lies within one standard error of the best"


def mitigate(session: Session) -> None:
    """Writes mitigation.json, where experiments.mitigation asks for it."""
    if not session.config.experiments.mitigation or session.plan.adapter.kind == "none":
        run_folder.write_json(session.run.mitigation, {"measured": False})
        return
    slower = session.plan.model_copy(update={"lr": session.plan.lr / SLOWER})
    rows, dev = tuple(session.rendered["train"]), tuple(session.rendered["dev"])
    said = tuple(replay(session))
    both = (*rows, *said)
    share = sum(r.supervised for r in said) / max(1, sum(r.supervised for r in both))
    steps = round(session.plan.steps * len(both) / len(rows))
    replayed = session.plan.model_copy(update={"method": "distill", "rows": len(both), "steps": steps})
    ways = {
        f"rate / {SLOWER:g}": Branch("slower", slower, rows, dev, session.run.scale),
        f"replay ({share:.0%} of the learned tokens)": Branch("replay", replayed, both, dev, session.run.scale),
    }
    texts = {"task": forget.own_answers(session), "generic": forget.generic(session, forget.STANDARD_TOKENS)[0]}
    (tuned,) = session.families["tuned"]
    told: dict[str, Any] = {"as it is": {"dev": [s["score"] for s in prove.answered(session, tuned, "dev")]}}
    for name, branch in ways.items():
        told[name] = {"dev": [s["score"] for s in branches.scores(session, branch, "dev", tuned)]}
    for name, found in told.items():
        model = session.trained() if name == "as it is" else branches.trained(session, ways[name])
        for kind, of in texts.items():
            if of:
                d = kl.measure(model, of, [1.0], session.plan.layout)
                measured = forget.in_bits(d, [r.row for r in of], session.config.prove.significance)
                found[kind] = {"kl_bits": measured["kl_bits"][0], "delta_bits": measured["delta_bits"][0]}
    chosen = choose(told, HIGHER_IS_BETTER[session.data.task.metric])
    for found in told.values():
        found["dev"] = float(np.mean(found["dev"]))
    run_folder.write_json(session.run.mitigation, {"measured": True, "rule": RULE, "chosen": chosen, "ways": told})
    for name, found in told.items():
        session.talk.say(
            f"mitigation: {name}: dev {found['dev']:.3f}, KL on generic text {found['generic']['kl_bits']:.3f} bits a token"
        )


def choose(ways: dict[str, dict[str, Any]], higher_is_better: bool) -> str:
    """By `RULE`; ``ways[name]`` holds the rows' dev scores and the KL on generic text."""
    sign = 1.0 if higher_is_better else -1.0
    best = max(ways, key=lambda n: sign * float(np.mean(ways[n]["dev"])))
    return min(
        (n for n in ways if forget.as_good(ways[n]["dev"], ways[best]["dev"], sign)),
        key=lambda n: ways[n]["generic"]["kl_bits"],
    )


def replay(session: Session) -> list[TrainRow]:
    """The base's own greedy answers to prompts that are not of the task, with its shares: about a tenth as many as training rows."""
    count = max(8, len(session.rendered["train"]) // 10)
    asks = [ask.format(noun) for ask in ASKS for noun in probes.NOUNS][:count]
    asked = [rendering.for_generation(session.template, [Message("user", a)]) for a in asks]
    limit = dataclasses.replace(session.how, max_new_tokens=REPLAY_TOKENS)
    with adapters.off(session.loaded().module):
        with session.talk.bar("replay answers", len(asked)) as note:
            said = generate.greedy(session.loaded(), asked, limit, functools.partial(note, words="rows"))
        rows = [after(p, a, -1 - i) for i, (p, a) in enumerate(zip(asked, said, strict=True)) if a]
        return distill.with_teacher(session.loaded(), rows, rows, session.plan.layout)
