"""Run an arm on held-out rows: one line a row, with what was asked, wanted, answered, and how it scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from tunewright.core.config import Plan
from tunewright.data.examples import Chat, Example, Message, Text
from tunewright.data.metrics import Task, bits_per_byte, field_counts, macro_f1, micro_f1, read_label, score_answer, strict_match
from tunewright.judge.arms import openai_endpoint
from tunewright.judge.arms.families import Arm, prompt
from tunewright.model import adapters, forward
from tunewright.model.generate import Decoding, greedy, label_logprobs
from tunewright.model.language_model import LanguageModel
from tunewright.tokens import rendering
from tunewright.tokens.packing import microbatches, singles, to_batch
from tunewright.tokens.sequences import Rendered
from tunewright.tokens.template import Template

Score = dict[str, Any]


def judge(
    model: LanguageModel,
    system: Arm,
    examples: Sequence[Example],
    task: Task,
    template: Template,
    how: Decoding,
    plan: Plan,
    watch: Callable[[int], None] = lambda _: None,
) -> list[Score]:
    """Scores of one arm, in the order of the examples. ``watch`` hears how many rows have just been finished."""
    with nullcontext() if system.adapter else adapters.off(model.module):
        if task.kind == "text":
            return _judge_text(model, [e for e in examples if isinstance(e, Text)], template, plan, watch)
        chats = [e for e in examples if isinstance(e, Chat)]
        if system.says is not None:
            return _judge_shares(system, chats, task, watch)
        if system.endpoint is not None:
            return _judge_remote(system, chats, task, how, watch)
        if task.metric == "accuracy":
            return _judge_labels(model, system, chats, task, template, how, watch)
        return _judge_answers(model, system, chats, task, template, how, watch)


def _line(example: Chat, messages: Sequence[Message], answer: str, score: float, prompt_tokens: int, **more: Any) -> Score:
    shown = [{"role": m.role, "content": m.content} for m in messages]
    return {
        "where": example.where,
        "messages": shown,
        "target": example.target,
        "answer": answer,
        "score": score,
        "prompt_tokens": prompt_tokens,
        **more,
    }


def _judge_answers(
    model: LanguageModel,
    system: Arm,
    chats: Sequence[Chat],
    task: Task,
    template: Template,
    how: Decoding,
    watch: Callable[[int], None],
) -> list[Score]:
    prompts = [prompt(system, e) for e in chats]
    asked = [rendering.for_generation(template, p) for p in prompts]
    found = greedy(model, asked, how, watch)
    lines = []
    for example, messages, before, ids in zip(chats, prompts, asked, found, strict=True):
        answer, cut = rendering.decode(template, ids), len(ids) >= how.max_new_tokens
        lines.append(_answered(example, messages, answer, task, len(before), len(ids), cut))
    return lines


def _answered(
    example: Chat, messages: Sequence[Message], answer: str, task: Task, prompt_tokens: int, answer_tokens: int, cut: bool
) -> Score:
    more: dict[str, Any] = {
        "answer_tokens": answer_tokens,
        "cut": cut,
        "exact_match": score_answer("exact_match", example.target, answer),
        "strict_match": strict_match(example.target, answer),
    }
    if task.kind == "json":
        counts = field_counts(example.target, answer)
        more |= {"valid": counts.valid, "fields": [counts.right, counts.wrong, counts.missed]}
    elif task.kind == "generation":
        more["chrf"] = score_answer("chrf", example.target, answer)
    return _line(example, messages, answer, score_answer(task.metric, example.target, answer), prompt_tokens, **more)


def _judge_remote(system: Arm, chats: Sequence[Chat], task: Task, how: Decoding, watch: Callable[[int], None]) -> list[Score]:
    """Another model's answers. A label is read out of a sentence that names no other label."""
    assert system.endpoint is not None
    prompts = [prompt(system, e) for e in chats]
    lines = []
    for example, messages, reply in zip(
        chats, prompts, openai_endpoint.answers(system.endpoint, prompts, how.max_new_tokens, watch), strict=True
    ):
        answer = (read_label(reply.text, task.labels) or reply.text) if task.kind == "label" else reply.text
        line = _answered(example, messages, answer, task, reply.prompt_tokens, reply.answer_tokens, reply.cut)
        lines.append({**line, "seconds": round(reply.seconds, 3)})
    return lines


def _judge_shares(system: Arm, chats: Sequence[Chat], task: Task, watch: Callable[[int], None]) -> list[Score]:
    assert system.says is not None
    lines = []
    for example, shares in zip(chats, system.says(chats), strict=True):
        best = max(task.labels, key=lambda label: shares[label])
        rounded = {label: round(share, 6) for label, share in shares.items()}
        score = score_answer("exact_match", example.target, best)
        lines.append(_line(example, example.prompt, best, score, 0, shares=rounded))
        watch(1)
    return lines


def _judge_labels(
    model: LanguageModel,
    system: Arm,
    chats: Sequence[Chat],
    task: Task,
    template: Template,
    how: Decoding,
    watch: Callable[[int], None],
) -> list[Score]:
    prompts = [prompt(system, e) for e in chats]
    ids = [rendering.for_generation(template, p) for p in prompts]
    labels = [[rendering.completion_ids(template, p, label) for label in task.labels] for p in prompts]
    logp = label_logprobs(model, ids, labels, how, watch)
    share = np.exp(logp - np.logaddexp.reduce(logp, axis=1, keepdims=True))
    lines = []
    for i, (example, messages) in enumerate(zip(chats, prompts, strict=True)):
        best = int(logp[i].argmax())
        shares = {label: round(float(s), 6) for label, s in zip(task.labels, share[i], strict=True)}
        lines.append(
            _line(example, messages, task.labels[best], float(task.labels[best] == example.target), len(ids[i]), shares=shares)
        )
    return lines


def _judge_text(
    model: LanguageModel, texts: Sequence[Text], template: Template, plan: Plan, watch: Callable[[int], None]
) -> list[Score]:
    """Bits per byte of each document, cut into the same pieces as in training."""
    lines = []
    for i, text in enumerate(texts):
        pieces = rendering.for_training(template, text, i, plan.max_length)
        nats = sequence_nats(model, pieces, plan)
        score = bits_per_byte(nats, len(text.text.encode()))
        lines.append(
            {
                "where": text.where,
                "messages": [],
                "target": text.text[:200],
                "answer": "",
                "score": score,
                "bytes": len(text.text.encode()),
                "nats": nats,
            }
        )
        watch(1)
    return lines


@torch.inference_mode()
def sequence_nats(model: LanguageModel, rows: Sequence[Rendered], plan: Plan) -> float:
    """Summed negative log-likelihood of ``rows``."""
    groups = microbatches(singles([r.ids for r in rows]), plan.tokens_per_pass, plan.layout)
    return sum(float(forward.loss(model, to_batch([rows[i] for i in g], plan.layout))) for g in groups)


def summary(task: Task, scores: Sequence[Score]) -> dict[str, float]:
    """An arm's numbers beside its primary score: corpus metrics and shares, for people."""
    found: dict[str, float] = {}
    if not scores:
        return found
    if task.kind == "json":
        from tunewright.data.metrics import FieldCounts

        found["field_micro_f1"] = micro_f1(
            [FieldCounts(s["fields"][0], s["fields"][1], s["fields"][2], s["valid"]) for s in scores]
        )
        found["valid_json"] = float(np.mean([s["valid"] for s in scores]))
    if task.kind == "label":
        found["macro_f1"] = macro_f1([s["target"] for s in scores], [s["answer"] for s in scores])
    if "exact_match" in scores[0]:
        found["exact_match"] = float(np.mean([s["exact_match"] for s in scores]))
        found["strict_match"] = float(np.mean([s["strict_match"] for s in scores]))
        found["cut_answers"] = float(np.mean([s["cut"] for s in scores]))
    if task.kind == "generation":
        from sacrebleu.metrics.chrf import CHRF

        found["corpus_chrf"] = (
            float(CHRF().corpus_score([s["answer"] for s in scores], [[s["target"] for s in scores]]).score) / 100
        )
    if task.kind == "text":
        found["corpus_bits_per_byte"] = bits_per_byte(sum(s["nats"] for s in scores), sum(s["bytes"] for s in scores))
    return found
