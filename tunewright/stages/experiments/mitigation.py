"""Two ways to forget less, trained as branches and measured: a lower learning rate, and replay of the base's own
answers.

Replay: the base answers prompts that have nothing to do with the task, and its probabilities become targets in addition
to the task's rows, so the loss includes the KL from the base model on that text (self-generated replay, 2605.26097).
Test rows are not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tunewright.core.chosen import chosen_scale
from tunewright.core.records import Drift, Mitigation, MitigationVariant
from tunewright.data.messages import question
from tunewright.judge.probes import bank
from tunewright.methods import distill
from tunewright.model.decoding import generate
from tunewright.runtime import branches, weights
from tunewright.runtime.branches import Branch
from tunewright.runtime.context import Work
from tunewright.runtime.weights import Weights, base
from tunewright.stages import forgetting
from tunewright.stages.stage import Stage
from tunewright.tokens import rendering
from tunewright.tokens.sequences import TrainRow, prompt_then_answer

PROMPTS = (
    "Tell me about a {}.",
    "What would you do with a {}?",
    "Describe a {} to a child.",
    "Write two sentences in which a {} appears.",
)
REPLAY_TOKENS = 48
SLOWER = 3.0
UNCHANGED = "unchanged"
RULE = "the lowest KL on generic text among those whose dev score lies within one standard error of the best"


@dataclass(frozen=True)
class MeasuredVariant:
    """One way of training, measured: dev scores per row, and the drift from the base on the task's text and on generic
    text."""

    dev: tuple[float, ...]
    task: Drift | None
    generic: Drift


def mitigation(work: Work) -> Mitigation:
    """Trains two branches and compares them with the run on dev."""
    tuned, plan = work.tuned, work.plan
    variants: dict[str, Weights] = {UNCHANGED: weights.at_chosen_scale(work.run, plan)}
    dev = {UNCHANGED: work.answers.of(tuned, "dev", variants[UNCHANGED])}
    every = _branches(work)
    branches.require(work.setup, list(every.values()))
    for name, branch in every.items():
        dev[name] = branches.scores(work, branch, "dev", tuned)
        variants[name] = branches.trained(work, branch)
    own, passages = forgetting.own_answers(work), forgetting.generic(work, forgetting.STANDARD_TOKENS)[0]

    def drift(name: str, text: str) -> Drift:
        rows = own if text == "task" else passages
        measured = forgetting.measure_kl(work, variants[name], rows, [1.0], text)
        return Drift(kl_bits=measured.kl_bits[0], delta_bits=measured.delta_bits[0])

    measured = {
        name: MeasuredVariant(
            tuple(s.score for s in dev[name]), drift(name, "task") if own else None, drift(name, "generic")
        )
        for name in variants
    }
    return Mitigation(
        rule=RULE,
        chosen=choose(measured, work.data.task.metric.higher_is_better),
        variants={
            name: MitigationVariant(dev=float(np.mean(w.dev)), task=w.task, generic=w.generic)
            for name, w in measured.items()
        },
    )


def _branches(work: Work) -> dict[str, Branch]:
    plan, rows, dev, scale = work.plan, work.inputs.rows["train"], work.inputs.rows["dev"], chosen_scale(work.run)
    slower = plan.model_copy(update={"lr": plan.lr / SLOWER})
    replayed = tuple(replay(work))
    both = (*rows, *replayed)
    fraction = sum(r.supervised for r in replayed) / max(1, sum(r.supervised for r in both))
    steps = round(plan.steps * len(both) / len(rows))
    with_replay = plan.model_copy(update={"method": "distill", "rows": len(both), "steps": steps})
    return {
        f"lr / {SLOWER:g}": Branch("slower", slower, rows, dev, scale),
        f"replay ({fraction:.0%} of the supervised tokens)": Branch("replay", with_replay, both, dev, scale),
    }


def choose(variants: Mapping[str, MeasuredVariant], higher_is_better: bool) -> str:
    """By `RULE`."""
    sign = 1.0 if higher_is_better else -1.0
    best = max(variants, key=lambda name: sign * float(np.mean(variants[name].dev)))
    good = (name for name in variants if forgetting.as_good(variants[name].dev, variants[best].dev, sign))
    return min(good, key=lambda name: variants[name].generic.kl_bits)


def replay(work: Work) -> list[TrainRow]:
    """The base's own greedy answers to prompts unrelated to the task, with its probabilities: about a tenth as many as
    training rows."""
    count = max(8, len(work.inputs.rows["train"]) // 10)
    texts = [prompt.format(noun) for prompt in PROMPTS for noun in bank.NOUNS][:count]
    prompts = [rendering.for_generation(work.inputs.template, question(t)) for t in texts]
    with work.answers.chat_model(base(work.plan), REPLAY_TOKENS) as model:
        with work.console.bar("replay answers", len(prompts), unit="rows") as tick:
            answers = generate.complete(model.model, prompts, model.decoding, tick)
        rows = [prompt_then_answer(p, a, -1 - i) for i, (p, a) in enumerate(zip(prompts, answers, strict=True)) if a]
        return distill.with_probabilities(model.model, rows, rows, work.plan.layout)


def skip_reason(work: Work) -> str | None:
    if not work.config.experiments.mitigation:
        return "experiments.mitigation is off"
    return None if work.inputs.dev else "it chooses by dev rows, and there are none"


def lines(record: Mitigation) -> Sequence[str]:
    return [
        f"mitigation: {name}: dev {variant.dev:.3f}, KL on generic text {variant.generic.kl_bits:.3f} bits/token"
        for name, variant in record.variants.items()
    ]


STAGE = Stage(
    name="mitigation",
    run=lambda inputs: mitigation(inputs.work()),
    skip_reason=skip_reason,
    lines=lines,
)
