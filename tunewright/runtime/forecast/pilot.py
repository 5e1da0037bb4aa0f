"""What a few rows take on this machine before a run: reading, training, and the answers of untrained arms.

Times in seconds, lengths in tokens. Axes: N rows and key-value heads, m heads for each of these, K head width.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from tunewright.data.messages import Example
from tunewright.judge.arms.arm import Arm
from tunewright.judge.chat_model import ChatModel
from tunewright.judge.evaluate import decoded_together, score_arm
from tunewright.methods import kto
from tunewright.model.attention import prefixed
from tunewright.model.decoding import generate
from tunewright.model.decoding.generate import Request
from tunewright.model.language_model import LanguageModel
from tunewright.runtime.context import Work
from tunewright.runtime.weights import base
from tunewright.tokens import rendering
from tunewright.train.profile import Speed

ROWS, TOKENS = 4, 128  # training rows that every untrained arm answers, and how far
SECONDS = 15.0  # of these answers, about, at most
ALONE, TOGETHER, MANY = 16, 9, 64  # tokens of one row, and of so many rows together
LAST, NEVER = 8, (-1,)  # tokens of a prompt of its own, while steps are timed; and what ends such an answer
CACHED, CACHES = 256, 16  # tokens that a row has in its cache; several caches, which do not stay in the processor's
SAMPLED = 64  # held-out rows whose prompts are measured


@dataclass(frozen=True)
class Lengths:
    """Of an arm's prompts: what they have in common, what each has of its own, the most that one has of its own. Of its
    answers: the mean, the longest."""

    prefix: int
    own: float
    widest: int
    mean: float
    longest: int

    def cut(self, limit: int) -> Lengths:
        """With answers of at most ``limit``."""
        return replace(self, mean=min(self.mean, limit), longest=min(self.longest, limit))


@dataclass(frozen=True)
class Steps:
    """Decoding: a step of n rows takes ``step`` + n * ``row``, and ``cached`` for each token in the rows' caches.
    ``adapter``: times as long with an adapter."""

    step: float = 0.0
    row: float = 0.0
    cached: float = 0.0
    adapter: float = 1.0


@dataclass(frozen=True)
class Pilot:
    """``train`` and ``read``: of a token, with and without a backward pass; ``update``: of the optimizer. ``lengths``:
    of arms that write, by name. ``others``: of a held-out row of average length, for arms that do not."""

    train: float
    read: float
    update: float
    steps: Steps
    lengths: dict[str, Lengths]
    others: dict[str, float]


def measure(work: Work, speed: Speed) -> Pilot:
    """Let the untrained arms answer some training rows."""
    # Rendered, so not too long.
    rows = [work.data.examples[r.row] for r in work.inputs.rows["train"] if kto.is_desirable(r)][:ROWS]
    longer = _characters(_held_out(work)) / _characters(rows)  # documents may differ much
    arms = [arm for variants in work.inputs.arms.values() for arm in variants if not arm.trained]
    lengths: dict[str, Lengths] = {}
    others, steps = dict[str, float](), Steps()
    with work.answers.chat_model(base(work.plan), min(TOKENS, work.plan.max_new_tokens)) as model:
        for arm in arms:
            if arm.needs_model and not decoded_together(arm) and work.data.task.corpus is None:
                start = time.monotonic()
                score_arm(arm, rows, work.data.task, model)
                others[arm.name] = (time.monotonic() - start) / len(rows) * longer
        most = work.inputs.facts.context - model.decoding.max_new_tokens
        asked = [(arm, rendered(work, arm, rows)) for arm in arms if decoded_together(arm)]
        asked = [(arm, own) for arm, own in asked if max(map(len, own)) <= most]
        if asked:
            steps = _steps(model, asked[0][1])
            lengths = _lengths(work, model, asked, steps)
    if work.plan.adapter.kind == "none":
        work.models.release()  # the base is a second model there
    elif asked:
        adapted = _steps(work.answers.answering(work.models.untrained(work.plan)), asked[0][1])
        steps = replace(steps, adapter=max(1.0, (adapted.step + MANY * adapted.row) / (steps.step + MANY * steps.row)))
    return Pilot(1 / speed.tokens_per_second, speed.read, speed.update, steps, lengths, others)


def rendered(work: Work, arm: Arm, rows: Sequence[Example]) -> list[list[int]]:
    """The arm's prompts for these rows."""
    return [rendering.for_generation(work.inputs.template, arm.prompt(e)) for e in rows]


def prompts(work: Work, arm: Arm) -> tuple[int, float, int]:
    """Of held-out rows: what the prompts have in common, and the mean and the most of what each has of its own."""
    ids = rendered(work, arm, _held_out(work))
    same = generate.common_prefix(ids) if len(ids) > 1 else 0
    lengths = [len(p) - same for p in ids]
    return same, sum(lengths) / len(lengths), max(lengths)


def _held_out(work: Work) -> list[Example]:
    return [work.data.examples[i] for i in (*work.inputs.dev, *work.inputs.test)[:SAMPLED]]


def _characters(rows: Sequence[Example]) -> float:
    """The mean of the rows."""
    return sum(len(e.text) for e in rows) / len(rows)


def _timed(
    model: ChatModel, asked: Sequence[Sequence[Sequence[int]]], tokens: int, stop: tuple[int, ...] | None = None
) -> tuple[float, list[list[int]]]:
    """Seconds, and the lengths of the answers after each arm's prompts. ``stop``: None for that of the model."""
    start, how = time.monotonic(), replace(model.decoding, max_new_tokens=tokens)
    how = replace(how, stop=how.stop if stop is None else stop)
    answers = generate.complete_all(model.model, [Request(own) for own in asked], how)
    return time.monotonic() - start, [list(map(len, own)) for own in answers]


def _steps(model: ChatModel, own: Sequence[Sequence[int]]) -> Steps:
    """One row, and many together, after what an arm's prompts begin with; of the rest, the last tokens are enough,
    because `cached` says what more of them take."""

    def later(rows: Sequence[Sequence[int]], tokens: int) -> tuple[float, list[int]]:
        """Seconds after the first token, and how many tokens each row wrote then: all of them, for none ends."""
        (before, _), (total, (written,)) = (_timed(model, [rows], n, NEVER) for n in (1, min(tokens, most)))
        return max(1e-6, total - before), [max(0, n - 1) for n in written]

    most, together = model.decoding.max_new_tokens, model.decoding.batchable
    same = generate.common_prefix(own) if len(own) > 1 else 0
    own = [[*ids[:same], *ids[same:][-LAST:]] for ids in own]
    later(own[:1], 2)  # to warm up
    seconds, (written,) = later(own[:1], ALONE)
    step = seconds / max(1, written)
    seconds, each = later([*own] * (MANY // len(own) if together else 1), TOGETHER)
    row = max(0.0, seconds - step * (max(each) if together else sum(each))) / max(1, sum(each))
    return Steps(step, row, _cached(model.model))


def _cached(model: LanguageModel) -> float:
    """Of attention to one token in a row's cache, in all layers."""
    if model.decoding == "modules":
        return 0.0
    config = model.module.config.get_text_config()
    heads, groups = int(config.num_attention_heads), int(config.num_key_value_heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    q_NmK = torch.zeros(MANY * groups, heads // groups, width, dtype=model.head_VD.dtype)
    caches = [q_NmK.new_zeros(2, MANY * groups, CACHED, width) for _ in range(CACHES)]
    start = time.monotonic()
    for keys, values in caches:
        prefixed.one_token(q_NmK, keys, values, None, None)
    return (time.monotonic() - start) / CACHES * int(config.num_hidden_layers) / (MANY * CACHED)


def _lengths(
    work: Work, model: ChatModel, asked: Sequence[tuple[Arm, list[list[int]]]], steps: Steps
) -> dict[str, Lengths]:
    """Of the arms' prompts and answers, by name. An answer that the pilot has cut may become as long as the plan
    allows."""
    together = model.model.decoding != "modules"
    batches = 1 if together else len(asked) * (1 if model.decoding.batchable else ROWS)
    cut = min(model.decoding.max_new_tokens, max(4, int(SECONDS / max(1e-6, steps.step * batches))))
    _, written = _timed(model, [own for _, own in asked], cut)
    lengths: dict[str, Lengths] = {}
    for (arm, _), tokens in zip(asked, written, strict=True):
        each = [work.plan.max_new_tokens if n >= cut else n for n in tokens]
        lengths[arm.name] = Lengths(*prompts(work, arm), sum(each) / len(each), max(each))
    return lengths
