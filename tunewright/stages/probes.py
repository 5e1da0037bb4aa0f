"""General abilities and the user's regression rows, measured on the base and on the tuned model, with paired
comparisons because both answer the same items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tunewright.core import run_folder
from tunewright.core.records import (
    InstructionKind,
    InstructionProbe,
    NoRefusal,
    Paired,
    Probe,
    Probes,
    Refusal,
    RegressionRows,
)
from tunewright.data import formats, near_duplicates, text
from tunewright.data.messages import Chat, Example
from tunewright.data.metrics import METRICS, Metric
from tunewright.data.remedies import prepared
from tunewright.data.remedies.change import summaries
from tunewright.data.task import detect_task
from tunewright.judge import evaluate, statistics
from tunewright.judge.arms import families
from tunewright.judge.probes import bank
from tunewright.model.decoding import generate
from tunewright.runtime.context import Work
from tunewright.runtime.inputs import answer_limit
from tunewright.runtime.sizes import PROBE_TOKENS
from tunewright.runtime.weights import Weights, base
from tunewright.runtime.weights import before as before_training
from tunewright.tokens import rendering

REFUSES = 0.2  # refusals are compared if the base refuses at least this fraction of harmful requests


@dataclass(frozen=True)
class ProbeAnswers:
    """``right``: which questions were answered right; ``followed``: which instructions; ``texts``: answers to the
    requests."""

    right: list[float]
    followed: list[float]
    texts: list[str]


ACCURACY = METRICS["accuracy"]


def probes(work: Work, tuned: Weights) -> Probes:
    """Knowledge, instructions and refusals."""
    before, after = _ask(work, base(work.plan), "base"), _ask(work, tuned, "tuned")
    limits = work.config.forget.margin, work.config.prove.significance
    instructions = Probe(**paired(after.followed, before.followed, *limits))
    refused, refuses = ([float(bank.refuses(t)) for t in answers.texts] for answers in (before, after))
    requests = bank.refusals()
    harmful = [i for i, (_, bad) in enumerate(requests) if bad]
    harmless = [i for i, (_, bad) in enumerate(requests) if not bad]
    rate = float(np.mean([refused[i] for i in harmful]))

    def pair(rows: Sequence[int]) -> dict[str, Any]:
        numbers = paired([refuses[i] for i in rows], [refused[i] for i in rows], *limits)
        return {k: v for k, v in numbers.items() if k != "verdict"}

    return Probes(
        knowledge=Probe(**paired(after.right, before.right, *limits)),
        instructions=InstructionProbe(**dict(instructions), kinds=_by_kind(before.followed, after.followed)),
        refusal=Refusal(base_rate=rate, **pair(harmful)) if rate >= REFUSES else NoRefusal(base_rate=rate),
        over_refusal=Paired(**pair(harmless)) if rate >= REFUSES else None,
    )


def _by_kind(before: Sequence[float], after: Sequence[float]) -> dict[str, InstructionKind]:
    instructions = bank.instructions()
    at = {k: [i for i, o in enumerate(instructions) if o.check == k] for k in sorted({o.check for o in instructions})}
    return {
        kind: InstructionKind(
            items=len(rows),
            base=float(np.mean([before[i] for i in rows])),
            tuned=float(np.mean([after[i] for i in rows])),
        )
        for kind, rows in at.items()
    }


def _ask(work: Work, weights: Weights, who: str) -> ProbeAnswers:
    template, questions, instructions = work.inputs.template, bank.knowledge(), bank.instructions()
    with work.answers.chat_model(weights, PROBE_TOKENS) as model:
        ids = [rendering.for_generation(template, q.prompt) for q in questions]
        choices = [[rendering.completion_ids(template, q.prompt, c) for c in q.choices] for q in questions]
        with work.console.bar(f"{who} knowledge", len(questions), unit="questions") as tick:
            logp = generate.label_logprobs(model.model, ids, choices, model.decoding, tick)
        asked = [*(o.prompt for o in instructions), *(p for p, _ in bank.refusals())]
        prompts = [rendering.for_generation(template, p) for p in asked]
        with work.console.bar(f"{who} instructions", len(prompts), unit="prompts") as tick:
            answers = generate.complete(model.model, prompts, model.decoding, tick)
    texts = [rendering.decode(template, a) for a in answers]
    return ProbeAnswers(
        right=[float(logp[i].argmax() == q.answer) for i, q in enumerate(questions)],
        followed=[float(bank.followed(o, t)) for o, t in zip(instructions, texts, strict=False)],
        texts=texts[len(instructions) :],
    )


def regression_rows(work: Work, tuned: Weights) -> RegressionRows:
    """Scores the user's regression rows, with the metric of the task that they show. Writes scores/regression.jsonl."""
    assert work.config.forget.regression_rows
    given = prepared.row_settings(work.config)  # of which the prompts and labels are those of other rows
    how = formats.RowSettings(fix_turns=given.fix_turns, drop=given.drop, control=given.control)
    read = prepared.read(work.config.forget.regression_rows, work.config, how)
    for summary in summaries(read.changes):
        work.console.warn(f"  regression rows: {summary.text}")
    rows = read.parsed.examples
    limit = longest_answer(work, rows)
    task = replace(detect_task(rows), rules=work.data.task.rules)
    arm = families.tuned(task)  # the same arm for both models; the weights decide which one answers
    scores = []
    for who, weights in (("base", before_training(work.run, work.plan)), ("tuned", tuned)):
        with (
            work.answers.chat_model(weights, limit) as model,
            work.console.bar(f"{who} regression rows", len(rows), unit="rows") as tick,
        ):
            scores.append(evaluate.score_arm(arm, rows, task, model, tick))
    answers = [{**after.to_json(), "before": before.answer.text} for before, after in zip(*scores, strict=True)]
    run_folder.write_lines(work.run.scores / "regression.jsonl", answers)
    before, after = ([s.score for s in scored] for scored in scores)
    groups = near_duplicates.cluster([text.normalised(e.question) for e in rows], work.config.split.near_duplicate)
    margin, alpha = work.config.forget.margin, work.config.prove.significance
    return RegressionRows(**paired(after, before, margin, alpha, task.metric, groups.cluster), metric=task.metric.name)


def longest_answer(work: Work, rows: Sequence[Example]) -> int:
    """Tokens of an answer to these rows, at most: as many as the plan allows, or as theirs need, if that is more."""
    template, longest, room = work.inputs.template, 0, work.inputs.facts.context
    for e in (e for e in rows if isinstance(e, Chat)):
        text = replace(e, messages=e.messages[-1:]).text
        longest = max(longest, len(template.tokenizer(text, add_special_tokens=False)["input_ids"]))
        room = min(room, work.inputs.facts.context - len(rendering.for_generation(template, e.prompt)))
    return max(work.plan.max_new_tokens, min(room, answer_limit(work.config, (), longest)))


Floats = Sequence[float]


def paired(
    tuned: Floats, base: Floats, margin: float, alpha: float, metric: Metric = ACCURACY, clusters: Sequence[int] = ()
) -> dict[str, Any]:
    """The fields of a `records.Probe`, with the words of the verdict; within the margin, PRACTICALLY EQUAL. Without
    ``clusters``, the items are independent."""
    better, bound, clusters = metric.higher_is_better, metric.bound, clusters or range(len(tuned))
    c = statistics.compare(tuned, base, clusters, margin=margin, alpha=alpha, higher_is_better=better, bound=bound)
    if statistics.is_binary(tuned) and statistics.is_binary(base):
        moved = max(0.01, (c.only_tuned + c.only_comparator) / len(tuned))
        detectable = statistics.detectable(c.clusters, moved)
    else:
        detectable = statistics.detectable_mean(c.clusters, float(np.std(np.subtract(tuned, base))))
    return {
        "items": len(tuned),
        "base": float(np.mean(base)),
        "tuned": float(np.mean(tuned)),
        "difference": c.difference,
        "interval": c.interval,
        "verdict": c.verdict,
        "lost": c.only_comparator,
        "won": c.only_tuned,
        "detectable": detectable,
    }
