"""What training changed besides the task: KL from the base model, likelihood of text, probes; and whether a smaller
scale of the trained update is as good. Everything here reads dev and bundled text, never test, so that it may be used
to make choices.

KL on the task's own inputs predicts forgetting best (RL's Razor, 2509.04259). Interpolating towards the base is WiSE-FT
(2109.01903); for LoRA that is one number, the factor on the trained update.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tunewright.core.records import Forgetting, GenericKL, Interval, Sweep, TextKL
from tunewright.data.messages import Chat
from tunewright.judge import statistics
from tunewright.judge.probes import bank
from tunewright.model import kl
from tunewright.model.decoding import generate
from tunewright.model.kl import Divergence
from tunewright.runtime import weights
from tunewright.runtime.context import Work
from tunewright.runtime.sizes import OWN_ANSWER_TOKENS
from tunewright.runtime.weights import Weights, base
from tunewright.stages import probes
from tunewright.stages.stage import Stage
from tunewright.tokens import rendering
from tunewright.tokens.sequences import TokenSequence, prompt_then_answer

RULE = "the smallest scale whose dev score lies within one standard error of the best scale's"
PIECE = 512  # tokens of a piece of bundled text
STANDARD_TOKENS, FULL_TOKENS = 4_000, 6_000
TITLES = {"task": "the base model's own answers to dev prompts", "generic": "bundled text of four kinds"}


def forgetting(work: Work) -> Forgetting:
    """KL and likelihood at every scale, dev scores at every scale, probes and regression rows as the config asks."""
    config = work.config
    full = config.prove.evidence == "full"
    adapter = work.plan.adapter.kind != "none" and not work.plan.adapter.of_peft  # whose update can be multiplied
    several = adapter and bool(work.inputs.dev) and (full or config.forget.apply_best_scale)
    scales = (*(s for s in config.forget.scales if s != 1.0), 1.0) if several else (1.0,)
    tuned = weights.at_scale(work.run, work.plan, 1.0)
    passages, size = generic(work, FULL_TOKENS if full else STANDARD_TOKENS)
    answers = own_answers(work)
    task = measure_kl(work, tuned, answers, scales, "task") if answers else None
    text = measure_kl(work, tuned, passages, scales, "generic") if passages else None
    sweep = _sweep(work, tuned, scales) if len(scales) > 1 else None
    chosen = sweep.chosen if sweep and config.forget.apply_best_scale else 1.0
    tuned = dataclasses.replace(tuned, scale=chosen)
    return Forgetting(
        scales=scales,
        rule=RULE,
        chosen=chosen,
        task=task,
        generic=None if text is None else GenericKL(**dict(text), **per_byte(text, size)),
        sweep=sweep,
        probes=probes.probes(work, tuned) if full else None,
        regression_rows=probes.regression_rows(work, tuned) if config.forget.regression_rows else None,
    )


def measure_kl(work: Work, tuned: Weights, rows: Sequence[TokenSequence], scales: Sequence[float], text: str) -> TextKL:
    """KL from the base model on ``rows``; ``text`` is the key of their title in `TITLES`."""
    with work.console.bar(f"KL on {text}", len(rows), unit="rows") as tick, work.models.at(tuned) as model:
        if work.plan.adapter.kind == "none":
            with work.models.at(base(work.plan)) as before:
                d = kl.measure(model, rows, scales, work.plan.layout, tick, before)
        else:
            d = kl.measure(model, rows, scales, work.plan.layout, tick)
    return in_bits(d, [r.row for r in rows], work.config.prove.significance, TITLES[text])


def own_answers(work: Work) -> list[TokenSequence]:
    """Dev prompts with the base model's own answers, which show where the tuned model's habits differ."""
    if not work.data.task.kind.prompted:
        return []
    rows = work.inputs.dev
    chats = [e for i in rows if isinstance(e := work.data.examples[i], Chat)]
    prompts = [rendering.for_generation(work.inputs.template, e.prompt) for e in chats]
    limit = min(OWN_ANSWER_TOKENS, work.plan.max_new_tokens)
    with (
        work.answers.chat_model(base(work.plan), limit) as model,
        work.console.bar("base answers", len(prompts), unit="rows") as tick,
    ):
        answers = generate.complete(model.model, prompts, model.decoding, tick)
    return [prompt_then_answer(p, a, row) for row, p, a in zip(rows, prompts, answers, strict=True) if a]


def generic(work: Work, tokens: int) -> tuple[list[TokenSequence], int]:
    """(bundled passages that training did not see, up to about ``tokens`` tokens; their size in bytes). ``row`` is the
    number of the passage."""
    seen = [e.text for e in work.data.examples]
    pieces: list[TokenSequence] = []
    size, limit = 0, min(PIECE, work.inputs.facts.context)
    for n, text in enumerate(bank.generic(seen)):
        if sum(len(r.ids) for r in pieces) >= tokens:
            break
        pieces += rendering.for_training(work.inputs.template, text, n, limit)
        size += len(text.text.encode())
    return pieces, size


def in_bits(d: Divergence, clusters: Sequence[int], alpha: float, what: str) -> TextKL:
    """Bits per token at each scale, with intervals over passages or rows."""
    bits = 1 / math.log(2)
    total = float(d.tokens_R.sum())
    intervals = []
    for kl_R in d.kl_SR:  # per row, over the mean length, so that the mean is the mean over tokens
        scaled_R = kl_R / d.tokens_R.mean() * bits
        low, high, _ = statistics.clustered_interval(scaled_R, clusters, alpha, math.inf, pseudo=False)
        intervals.append((max(0.0, low), high))
    return TextKL(
        what=what,
        rows=len(d.tokens_R),
        tokens=int(total),
        base_bits=float(d.base_nats_R.sum() / total * bits),
        kl_bits=tuple(float(x.sum() / total * bits) for x in d.kl_SR),
        kl_interval=tuple(Interval(lo, hi) if math.isfinite(hi) else None for lo, hi in intervals),
        delta_bits=tuple(float((x.sum() - d.base_nats_R.sum()) / total * bits) for x in d.nats_SR),
    )


def per_byte(text: TextKL, size: int) -> dict[str, Any]:
    """The same per byte, for a text of ``size`` UTF-8 bytes: comparable across tokenizers."""
    tokens_per_byte = text.tokens / size
    return {
        "bytes": size,
        "base_bits_per_byte": text.base_bits * tokens_per_byte,
        "delta_bits_per_byte": tuple(x * tokens_per_byte for x in text.delta_bits),
    }


def _sweep(work: Work, tuned: Weights, scales: Sequence[float]) -> Sweep:
    """Dev scores at each scale, and the scale that the rule selects."""
    scores: dict[float, list[float]] = {}
    for scale in scales:
        arm = dataclasses.replace(work.inputs.tuned, variant=f"scale{scale:g}")
        at_scale = dataclasses.replace(tuned, scale=scale)
        scores[scale] = [s.score for s in work.answers.of(arm, "dev", at_scale)]
    dev = {f"{s:g}": float(np.mean(x)) for s, x in scores.items()}
    return Sweep(dev=dev, chosen=choose(scores, work.data.task.metric.higher_is_better))


def choose(scores: Mapping[float, Sequence[float]], higher_is_better: bool = True) -> float:
    """The smallest scale whose mean lies within one standard error (of the paired difference) of the best scale's."""
    sign = 1.0 if higher_is_better else -1.0
    best = max(scores, key=lambda s: (sign * float(np.mean(scores[s])), -s))
    return min(scale for scale in scores if as_good(scores[scale], scores[best], sign))


def as_good(scores: Sequence[float], best: Sequence[float], sign: float) -> bool:
    """Whether the mean lies within one standard error (of the paired difference) of the best's."""
    lost = sign * (np.asarray(best) - np.asarray(scores))
    error = float(lost.std(ddof=1)) / math.sqrt(len(lost)) if len(lost) > 1 else 0.0
    return float(lost.mean()) <= error + 1e-12


def skip_reason(work: Work) -> str | None:
    if work.plan.silent:
        return f"the model {work.plan.silent}; it is not meant to write any more"
    return "prove.evidence is plain" if work.config.prove.evidence == "plain" else None


def lines(record: Forgetting) -> Sequence[str]:
    texts = (("task", record.task), ("generic", record.generic))
    parts = [f"KL from the base model: {t.kl_bits[-1]:.3f} bits/token on {name} text" for name, t in texts if t]
    if record.generic:
        parts.append(f"loss on generic text {record.generic.delta_bits_per_byte[-1]:+.3f} bits/byte")
    if record.probes:
        for name, probe in (("knowledge", record.probes.knowledge), ("instructions", record.probes.instructions)):
            parts.append(f"{name}: {probe.verdict.lower()} ({probe.difference:+.3f})")
    return ["forgetting: " + "; ".join(parts)]


STAGE = Stage(
    name="forgetting",
    run=lambda inputs: forgetting(inputs.work()),
    skip_reason=skip_reason,
    lines=lines,
)
