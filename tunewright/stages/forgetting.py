"""What training took away, and what a smaller share of it would cost: KL to the base, text likelihood, probes; the adapter's
scale as mitigation. Everything here reads dev and bundled text, never test, so that it may choose.

KL on the task's own inputs is what best foretells forgetting (RL's Razor, 2509.04259); interpolating towards the base is
WiSE-FT's cure (2109.01903), for LoRA one number on the adapter.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tunewright.core import run_folder
from tunewright.data import examples, metrics, sources
from tunewright.data.examples import Chat, Message, Text
from tunewright.data.metrics import HIGHER_IS_BETTER
from tunewright.judge import evaluate, probes, statistics
from tunewright.judge.arms.families import Arm
from tunewright.model import adapters, generate, kl
from tunewright.model.kl import Divergence
from tunewright.run.session import Session
from tunewright.stages import prove
from tunewright.tokens import rendering
from tunewright.tokens.sequences import Rendered, after

RULE = "the smallest scale whose dev score lies within one standard error of the best scale's"
PIECE = 512
STANDARD_TOKENS, FULL_TOKENS = 4_000, 6_000
PROBE_TOKENS = 32


def forget(session: Session) -> None:
    """Writes forgetting.json."""
    asked, config = session.config.forget, session.config
    if config.prove.evidence == "plain":
        run_folder.write_json(session.run.forgetting, {"measured": False})
        return
    full = config.prove.evidence == "full"
    scales = (
        [s for s in asked.scales if s != 1.0] if (full or asked.apply_best_scale) and session.plan.adapter.kind != "none" else []
    )
    model, scales = session.trained(), [*scales, 1.0]
    base = session.untrained() if session.plan.adapter.kind == "none" else None
    found: dict[str, Any] = {"measured": True, "scales": scales, "rule": RULE, "chosen": 1.0}
    passages, size = generic(session, FULL_TOKENS if full else STANDARD_TOKENS)
    texts = {"task": own_answers(session), "generic": passages}
    what = {"task": "the base model's own answers to dev prompts", "generic": "bundled text of four kinds"}
    for name, rows in texts.items():
        if not rows:
            continue
        with session.talk.bar(f"KL on {name}", len(rows)) as note:
            watch = functools.partial(note, words="rows")
            measured = kl.measure(model, rows, scales, session.plan.layout, watch, base)
        found[name] = {"what": what[name], **in_bits(measured, [r.row for r in rows], config.prove.significance)}
    if passages:
        found["generic"] |= per_byte(found["generic"], size)
    if len(scales) > 1:
        found["sweep"] = _sweep(session, scales)
        if asked.apply_best_scale:
            found["chosen"] = found["sweep"]["chosen"]
            adapters.scale_in_place(model.module, found["chosen"])
    if full:
        found["probes"] = _probes(session)
    if asked.regression_rows:
        found["keep"] = _kept(session)
    run_folder.write_json(session.run.forgetting, found)
    _say(session, found)


def _say(session: Session, found: dict[str, Any]) -> None:
    parts = [f"KL to the base {found[k]['kl_bits'][-1]:.3f} bits a token on {k} text" for k in ("task", "generic") if k in found]
    if "generic" in found:
        parts.append(f"generic text costs {found['generic']['delta_bits_per_byte'][-1]:+.3f} bits a byte")
    parts += [
        f"{k}: {v['verdict'].lower()} ({v['difference']:+.3f})" for k, v in found.get("probes", {}).items() if "verdict" in v
    ]
    session.talk.say("forgetting: " + "; ".join(parts))


def own_answers(session: Session) -> list[Rendered]:
    """Dev prompts with what the base model itself says to them: where the tuned model's habits differ, this shows it."""
    if session.data.task.kind == "text":
        return []
    rows = session.rows("dev")
    chats = [e for i in rows if isinstance(e := session.data.examples[i], Chat)]
    asked = [rendering.for_generation(session.template, e.prompt) for e in chats]
    how = dataclasses.replace(session.how, max_new_tokens=min(64, session.answer_tokens))
    with adapters.off(session.loaded().module), session.talk.bar("base answers", len(asked)) as note:
        said = generate.greedy(session.base_model(), asked, how, functools.partial(note, words="rows"))
    return [after(p, a, row) for row, p, a in zip(rows, asked, said, strict=True) if a]


def generic(session: Session, tokens: int) -> tuple[list[Rendered], int]:
    """Bundled passages that training did not see, up to about ``tokens`` tokens, and their bytes; ``row`` is the passage."""
    seen = [e.text if isinstance(e, Text) else "\n".join(m.content for m in e.messages) for e in session.data.examples]
    found: list[Rendered] = []
    size, limit = 0, min(PIECE, session.facts.context)
    for n, text in enumerate(probes.generic(seen)):
        if sum(len(r.ids) for r in found) >= tokens:
            break
        found += rendering.for_training(session.template, text, n, limit)
        size += len(text.text.encode())
    return found, size


def in_bits(d: Divergence, clusters: Sequence[int], alpha: float) -> dict[str, Any]:
    """Bits a token at each scale, with intervals over passages or rows."""
    bits = 1 / math.log(2)
    total = float(d.tokens_R.sum())
    intervals = []
    for kl_R in d.kl_SR:  # rows over the mean length: their mean is the mean over tokens
        low, high, _ = statistics.clustered_interval(kl_R / d.tokens_R.mean() * bits, clusters, alpha, math.inf, imagine=False)
        intervals.append((max(0.0, low), high))
    return {
        "rows": len(d.tokens_R),
        "tokens": int(total),
        "base_bits": float(d.base_nats_R.sum() / total * bits),
        "kl_bits": [float(x.sum() / total * bits) for x in d.kl_SR],
        "kl_interval": [[lo, hi] if math.isfinite(hi) else None for lo, hi in intervals],
        "delta_bits": [float((x.sum() - d.base_nats_R.sum()) / total * bits) for x in d.nats_SR],
    }


def per_byte(tokenwise: dict[str, Any], size: int) -> dict[str, Any]:
    """What `told` says of texts of ``size`` UTF-8 bytes, a byte: comparable between tokenizers."""
    tokens_a_byte = tokenwise["tokens"] / size
    return {
        "bytes": size,
        "base_bits_per_byte": tokenwise["base_bits"] * tokens_a_byte,
        "delta_bits_per_byte": [x * tokens_a_byte for x in tokenwise["delta_bits"]],
    }


def _sweep(session: Session, scales: Sequence[float]) -> dict[str, Any]:
    """dev scores at each scale, and the scale that the rule chooses."""
    higher = HIGHER_IS_BETTER[session.data.task.metric]
    (tuned,) = session.families["tuned"]
    scores: dict[float, list[float]] = {}
    for scale in scales:
        with adapters.scaled(session.loaded().module, scale):
            system = Arm("tuned", tuned.description, f"scale{scale:g}", adapter=True)
            scores[scale] = [s["score"] for s in prove.answered(session, system, "dev")]
    return {"dev": {f"{s:g}": float(np.mean(x)) for s, x in scores.items()}, "chosen": choose(scores, higher)}


def choose(scores: dict[float, list[float]], higher_is_better: bool = True) -> float:
    """The smallest scale whose mean lies within one standard error (of the paired difference) of the best scale's."""
    sign = 1.0 if higher_is_better else -1.0
    best = max(scores, key=lambda s: (sign * float(np.mean(scores[s])), -s))
    return min(scale for scale in scores if as_good(scores[scale], scores[best], sign))


def as_good(scores: Sequence[float], best: Sequence[float], sign: float) -> bool:
    """Whether the mean lies within one standard error (of the paired difference) of the best's."""
    lost = sign * (np.asarray(best) - np.asarray(scores))
    error = float(lost.std(ddof=1)) / math.sqrt(len(lost)) if len(lost) > 1 else 0.0
    return float(lost.mean()) <= error + 1e-12


def _probes(session: Session) -> dict[str, Any]:
    """Knowledge, instructions and refusals, asked of the base and of the tuned model; the same items, so compared in pairs."""
    asked, orders, asks = probes.knowledge(), probes.instructions(), probes.refusals()
    knew, followed, said = _asked(session, False, asked, orders, [m for m, _ in asks])
    knows, follows, says = _asked(session, True, asked, orders, [m for m, _ in asks])
    found: dict[str, Any] = {"knowledge": _paired(knows, knew, session), "instructions": _paired(follows, followed, session)}
    kinds = sorted({o.check for o in orders})
    of_kind = {k: [i for i, o in enumerate(orders) if o.check == k] for k in kinds}
    found["instructions"]["kinds"] = {
        k: {
            "items": len(at),
            "base": float(np.mean([followed[i] for i in at])),
            "tuned": float(np.mean([follows[i] for i in at])),
        }
        for k, at in of_kind.items()
    }
    before, after = ([float(probes.refuses(text)) for text in texts] for texts in (said, says))
    harmful = [i for i, (_, bad) in enumerate(asks) if bad]
    harmless = [i for i, (_, bad) in enumerate(asks) if not bad]
    rate = float(np.mean([before[i] for i in harmful]))
    found["refusal"] = {"base_rate": rate, "measured": rate >= 0.2}
    if rate >= 0.2:
        for name, rows in (("refusal", harmful), ("over_refusal", harmless)):
            pair = _paired([after[i] for i in rows], [before[i] for i in rows], session)
            found[name] = {**found.get(name, {}), **{k: v for k, v in pair.items() if k != "verdict"}}
    return found


def _asked(
    session: Session,
    trained: bool,
    asked: Sequence[probes.Question],
    orders: Sequence[probes.Instruction],
    asks: Sequence[tuple[Message, ...]],
) -> tuple[list[float], list[float], list[str]]:
    """(right answers, followed instructions, texts) of one of the two models."""
    template, how = session.template, dataclasses.replace(session.how, max_new_tokens=PROBE_TOKENS)
    model = session.trained() if trained else session.base_model()
    who = "tuned" if trained else "base"
    with adapters.scaled(model.module, 1.0 if trained else 0.0):
        ids = [rendering.for_generation(template, q.messages) for q in asked]
        choices = [[rendering.completion_ids(template, q.messages, c) for c in q.choices] for q in asked]
        with session.talk.bar(f"{who} knowledge", len(asked)) as note:
            logp = generate.label_logprobs(model, ids, choices, how, functools.partial(note, words="questions"))
        right = [float(logp[i].argmax() == q.answer) for i, q in enumerate(asked)]
        prompts = [rendering.for_generation(template, m) for m in [*(o.messages for o in orders), *asks]]
        with session.talk.bar(f"{who} orders", len(prompts)) as note:
            answers = generate.greedy(model, prompts, how, functools.partial(note, words="orders"))
    texts = [rendering.decode(template, a) for a in answers]
    return right, [float(probes.followed(o, t)) for o, t in zip(orders, texts, strict=False)], texts[len(orders) :]


def _paired(tuned: Sequence[float], base: Sequence[float], session: Session) -> dict[str, Any]:
    """Non-inferiority in the words of the verdict: WORSE, or PRACTICALLY EQUAL within the margin, or CANNOT TELL."""
    c = statistics.compare(
        tuned, base, list(range(len(tuned))), margin=session.config.forget.margin, alpha=session.config.prove.significance
    )
    moved = max(0.01, (c.only_tuned + c.only_other) / len(tuned))
    return {
        "items": len(tuned),
        "base": float(np.mean(base)),
        "tuned": float(np.mean(tuned)),
        "difference": c.difference,
        "interval": list(c.interval),
        "verdict": c.verdict,
        "lost": c.only_other,
        "won": c.only_tuned,
        "detectable": statistics.detectable(len(tuned), moved),
    }


def _kept(session: Session) -> dict[str, Any]:
    """The user's rows that must still work, with the metric that their own answers call for."""
    assert session.config.forget.regression_rows
    rows = examples.parse(
        sources.read(session.config.forget.regression_rows).rows, instruction=session.config.data.instruction
    ).examples
    task = metrics.detect_task(rows)
    sides = {}
    for name, trained in (("base", False), ("tuned", True)):
        model = session.trained() if trained else session.base_model()
        with (
            adapters.scaled(model.module, 1.0 if trained else 0.0),
            session.talk.bar(f"{name} must still work", len(rows)) as note,
        ):
            system = Arm(name, "", adapter=True)  # the scale alone says whether the trained weights speak
            told = functools.partial(note, words="rows")
            sides[name] = evaluate.judge(model, system, rows, task, session.template, session.how, session.plan, told)
    found = _paired([s["score"] for s in sides["tuned"]], [s["score"] for s in sides["base"]], session)
    run_folder.write_lines(
        session.run.scores / "keep.jsonl",
        [{**a, "before": b["answer"]} for a, b in zip(sides["tuned"], sides["base"], strict=True)],
    )
    return {**found, "metric": task.metric}
