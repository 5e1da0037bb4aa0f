"""How long the whole run will take, told before training: from what a few training rows took on this machine.

Times in seconds, lengths in tokens. A forecast counts what each stage reads, writes and trains on; it does not know how
long answers will be, except from the pilot's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from tunewright.core.config import Estimate
from tunewright.core.words import counted
from tunewright.data.messages import Example
from tunewright.judge.arms import decodings
from tunewright.judge.arms.arm import Arm
from tunewright.judge.arms.prompted import Prompted
from tunewright.judge.chat_model import ChatModel
from tunewright.judge.evaluate import score_arm
from tunewright.model.decoding import generate
from tunewright.model.decoding.generate import Request
from tunewright.runtime.context import Work
from tunewright.runtime.weights import base
from tunewright.system import machine
from tunewright.tokens import rendering
from tunewright.train.profile import Speed

PILOT, PILOT_TOKENS = 4, 128  # training rows that every untrained arm answers, and how far
OWN_ANSWER, GENERIC, PROBES, PROBE_ROWS, PROBE_TOKENS = 64, 5_000, 32_000, 360, 32  # of `forgetting`
LOADING = 6.0  # writing an export, and a process that loads it
RERUN, CALIBRATED = 16, 400  # rows of `prove`
OVERHEAD, PYTHON_GB = 1.7, 0.7  # of a cache, while it is copied; of torch and the data


@dataclass(frozen=True)
class Lengths:
    """Of an arm's prompts and answers: what the prompts have in common, what each has of its own, the mean answer, the
    longest."""

    prefix: int
    own: float
    mean: float
    longest: int

    def cut(self, limit: int) -> Lengths:
        """With answers of at most ``limit``."""
        return replace(self, mean=min(self.mean, limit), longest=min(self.longest, limit))


@dataclass(frozen=True)
class Pilot:
    """``train``, ``read``: of a token, with and without a backward pass; ``update``: of the optimizer. A decoding step
    of n rows takes ``step`` + n * ``row``. ``lengths``: of the arms that write, by name; ``others``: seconds for a row
    of the other arms."""

    train: float
    read: float
    update: float
    step: float
    row: float
    lengths: dict[str, Lengths]
    others: dict[str, float]


def estimate(work: Work, speed: Speed) -> Estimate:
    """Of the whole run. ``speed``: of training, measured."""
    pilot = measure(work, speed)
    seconds = {name: round(s, 1) for name, s in stages(work, pilot).items()}
    return Estimate(
        tokens_per_second=round(speed.tokens_per_second, 1),
        train_seconds=seconds["train"],
        peak_gb=round(max(machine.peak_gb(), decoding_gb(work, pilot)), 2),
        reason=f"{counted(speed.passes, 'training pass', 'training passes')} on real rows, at "
        f"{speed.tokens_per_second:.0f} tokens/s, and up to {PILOT} answers of each untrained arm",
        stages=seconds,
    )


def measure(work: Work, speed: Speed) -> Pilot:
    """Let the untrained arms answer some training rows."""
    rows = [work.data.examples[i] for i in work.data.side("train")[:PILOT]]
    arms = [arm for variants in work.inputs.arms.values() for arm in variants if not arm.trained]
    pilot = Pilot(1 / speed.tokens_per_second, speed.read, speed.update, 0.0, 0.0, {}, {})
    with work.answers.chat_model(base(work.plan), min(PILOT_TOKENS, work.plan.max_new_tokens)) as model:
        for arm in arms:
            if arm.needs_model and not isinstance(arm.responder, Prompted):
                start = time.monotonic()
                score_arm(arm, rows, work.data.task, model)
                pilot.others[arm.name] = (time.monotonic() - start) / len(rows)
        writers = [arm for arm in arms if isinstance(arm.responder, Prompted)]
        return _written(pilot, writers, rows, model, work.plan.max_new_tokens) if writers else pilot


def _written(pilot: Pilot, arms: Sequence[Arm], rows: Sequence[Example], model: ChatModel, limit: int) -> Pilot:
    """With the times and lengths of what ``arms`` wrote. ``limit``: of an answer that the pilot has cut."""
    prompts = [[rendering.for_generation(model.template, arm.prompt(e)) for e in rows] for arm in arms]

    def timed(prompts: Sequence[Sequence[Sequence[int]]], tokens: int) -> tuple[float, list[list[list[int]]]]:
        start, how = time.monotonic(), replace(model.decoding, max_new_tokens=tokens)
        answers = generate.complete_all(model.model, [Request(own) for own in prompts], how)
        return time.monotonic() - start, answers

    cut, one = model.decoding.max_new_tokens, [prompts[0][:1]]
    (before_one, _), (before, _) = timed(one, 1), timed(prompts, 1)
    (total_one, ((answer,),)), (total, answers) = timed(one, min(16, cut)), timed(prompts, cut)
    written = [[len(a) for a in of] for of in answers]
    step = max(0.0, total_one - before_one) / max(1, len(answer) - 1)
    row = max(0.0, total - before - step * max(map(max, written))) / max(1, sum(map(sum, written)))
    for arm, own, of in zip(arms, prompts, written, strict=True):
        lengths = [limit if n >= cut else n for n in of]
        pilot.lengths[arm.name] = Lengths(*_prompts(own), sum(lengths) / len(lengths), max(lengths))
    return replace(pilot, step=step, row=row)


def stages(work: Work, pilot: Pilot) -> dict[str, float]:
    """The seconds of each stage that takes long, by name."""
    config, plan, inputs = work.config, work.plan, work.inputs
    full, plain = config.prove.evidence == "full", config.prove.evidence == "plain"
    read, tuned = pilot.read, _tuned(work, pilot)
    dev, test, train = len(inputs.dev), len(inputs.test), plan.rows
    dev_tokens = sum(r.tokens for r in inputs.rows["dev"])

    def written(lengths: Sequence[Lengths], rows: int) -> float:
        if not lengths or not rows:
            return 0.0
        batches = ceil(len(lengths) * rows / plan.decode_batch_size)
        tokens = sum(each.prefix + rows * each.own for each in lengths)
        decoded = batches * max(each.longest for each in lengths) * pilot.step
        return tokens * read + decoded + rows * sum(each.mean for each in lengths) * pilot.row

    def judged(arms: Sequence[Arm], rows: int) -> float:
        lengths = [
            tuned if arm.trained else pilot.lengths[arm.name] for arm in arms if isinstance(arm.responder, Prompted)
        ]
        return written([x for x in lengths if x], rows) + rows * sum(_other(pilot, arm) for arm in arms)

    def trained(fraction: float) -> float:
        losses = (plan.steps * fraction / plan.eval_every + 1) * dev_tokens * read
        return fraction * (plan.tokens * plan.epochs * pilot.train + plan.steps * pilot.update) + losses

    families = list(inputs.arms.values())
    untrained = [arm for family in families for arm in family if arm.can_be_comparator]
    chosen = [family[0] for family in families]
    tuned_on_test = judged([inputs.tuned], test)
    seconds = {"train": trained(1.0)}
    if not plain:
        own = next(iter(pilot.lengths.values()), None)
        drift = (2 + (len(config.forget.scales) if full else 0)) * GENERIC * read
        seconds["forgetting"] = drift + (written([own.cut(OWN_ANSWER)], dev) if own else 0.0)
        if full:
            seconds["forgetting"] += len(config.forget.scales) * judged([inputs.tuned], dev)
            probe = Lengths(0, 30, PROBE_TOKENS, PROBE_TOKENS)
            seconds["forgetting"] += 2 * (PROBES * read + written([probe], PROBE_ROWS))
    seconds["prove"] = judged([a for a in chosen if not a.uses_adapter], test) + judged(
        [a for a in chosen if a.uses_adapter], test
    )
    seconds["prove"] += judged(untrained, dev) if len(untrained) > 1 else 0.0
    if not plain:
        ways = len(decodings.candidates(inputs.tuned, work.data.task, config.prove.decoding))
        seconds["prove"] += (ways - 1) * judged(chosen, dev) + (judged([inputs.tuned], dev) if ways > 1 else 0.0)
        seconds["prove"] += judged([inputs.tuned], RERUN) + max((judged([a], RERUN) for a in untrained), default=0.0)
        if work.data.task.metric.by_label:
            seconds["prove"] += judged([inputs.tuned], min(CALIBRATED, len(inputs.rows["dev"])))
    experiments = config.experiments
    if experiments.crossfit:
        seconds["crossfit"] = 4 * (trained(0.5) + judged([inputs.tuned], train // 2))
    if experiments.cleaning:
        seconds["cleaning"] = trained(1.0) + tuned_on_test
    if experiments.mitigation:
        seconds["mitigation"] = 2 * (trained(1.0) + judged([inputs.tuned], dev)) + 6 * GENERIC * read
    if count := experiments.prompt_distillation:
        share = (count + dev) / train
        seconds["prompt_distillation"] = (
            judged([chosen[0]], count + dev) + trained(share) + 2 * judged([chosen[0]], test)
        )
    if full:
        seconds["learning_curve"] = trained(0.5) + tuned_on_test
        if tuned:
            alone = 2 * (tuned.prefix + tuned.own) * read + tuned.mean * pilot.step
            seconds["cost"] = 4 * (config.cost.requests + 1) * alone
    rows = min(test, config.export.rows)
    seconds["export"] = len(config.export.to) * (LOADING + judged([inputs.tuned], rows))
    return seconds


def decoding_gb(work: Work, pilot: Pilot) -> float:
    """Memory while the arms write: weights, and a cache for each row of a batch."""
    facts, plan = work.inputs.facts, work.plan
    size = 2 if plan.dtype == "bfloat16" else 4
    lengths = sorted((x.own + x.longest for x in pilot.lengths.values()), reverse=True)
    rows = max(1, min(plan.decode_batch_size, len(work.inputs.test)))  # of an arm in a batch
    tokens = rows * sum(lengths[: max(1, plan.decode_batch_size // rows)])
    return 1e-9 * (size * facts.parameters + OVERHEAD * size * facts.layers * facts.cached * tokens) + PYTHON_GB


def _tuned(work: Work, pilot: Pilot) -> Lengths | None:
    """Of the tuned arm: the prompts of the rows, and answers as long as those that it learns."""
    arm = work.inputs.tuned
    if not isinstance(arm.responder, Prompted):
        return None
    examples = [work.data.examples[i] for i in work.data.side("train")[:PILOT]]
    prompts = [rendering.for_generation(work.inputs.template, arm.prompt(e)) for e in examples]
    answers = [min(r.supervised, work.plan.max_new_tokens) for r in work.inputs.rows["train"]]
    return Lengths(*_prompts(prompts), sum(answers) / len(answers), max(answers))


def _other(pilot: Pilot, arm: Arm) -> float:
    """Seconds for a row of an arm that does not write; a trained one takes what the base takes."""
    if isinstance(arm.responder, Prompted) or not arm.needs_model:
        return 0.0
    return pilot.others.get(arm.name, next(iter(pilot.others.values()), 0.0))


def _prompts(prompts: Sequence[Sequence[int]]) -> tuple[int, float]:
    same = generate.common_prefix(prompts) if len(prompts) > 1 else 0
    return same, sum(map(len, prompts)) / len(prompts) - same
