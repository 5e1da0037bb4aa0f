"""The scores of reward models that grade. Each is loaded when it is first asked, and kept for as long as the run is
open; a conversation has the score that the reward model's own run would give it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tunewright.core import records
from tunewright.core.config import Plan, load
from tunewright.core.errors import DataError, ModelError, RunError
from tunewright.core.records import Receipt
from tunewright.core.run_folder import Run
from tunewright.data.graders.grade import WHERE
from tunewright.data.graders.reward_model import Scores
from tunewright.data.messages import Chat
from tunewright.export import merged, tagger
from tunewright.export.kind import Base
from tunewright.judge.chat_model import ChatModel
from tunewright.methods.pairs import reward_model
from tunewright.model import model_files
from tunewright.model.decoding.generate import Decoding
from tunewright.model.heads.linear import head_of
from tunewright.runtime import chat, weights
from tunewright.runtime.models import Models
from tunewright.system import machine
from tunewright.tokens.sequences import TokenSequence
from tunewright.tokens.template import Template, load_template, require_template

UNBOUNDED = 1_000_000  # tokens
PADDED = 16  # conversations of a batch of a model that transformers computes


@dataclass(frozen=True)
class Loaded:
    """``read``: the scores of token sequences of at most ``context`` tokens, the place of the score not counted."""

    template: Template
    context: int
    read: Callable[[Sequence[TokenSequence]], list[float]]


def scores(date: str) -> Scores:
    """The function that computes scores. ``date``: for templates of exported models that print today's."""

    @functools.cache
    def loaded(path: Path, sha256: str) -> Loaded:
        return _of_run(Run(path)) if Run(path).config.is_file() else _of_folder(path, date)

    return lambda grader, chats: _scored(loaded(grader.path, grader.sha256), chats)


def _scored(model: Loaded, chats: Sequence[Chat]) -> list[float | str]:
    """Of each conversation, or why there is none. Equal ones have equal scores, whatever they are computed with."""
    rows = [_row(model, chat) for chat in chats]
    distinct = {row.ids: row for row in rows if isinstance(row, TokenSequence)}
    known = dict(zip(distinct, model.read(list(distinct.values())), strict=True)) if distinct else {}
    return [known[row.ids] if isinstance(row, TokenSequence) else row for row in rows]


def _row(model: Loaded, chat: Chat) -> TokenSequence | str:
    try:
        row = reward_model.conversation(model.template, chat)
    except DataError as error:
        return error.problems[0].message
    count = len(row.ids) - 1
    return row if count <= model.context else f"the reward model reads {model.context} tokens, and these are {count}"


def _of_run(run: Run) -> Loaded:
    """Raises RUN_DAMAGED for other weights, RESUME_MISMATCH for another base or template than it was trained with."""
    config, plan, receipt = load(run.config), records.read(run.plan, Plan), records.read(run.receipt, Receipt)
    facts, template = chat.base_of(config, plan, receipt)
    if template.sha256 != receipt.hashes["template"]:
        message, fix = "the chat template is not the one that the reward model was trained with.", "restore it."
        raise RunError("RESUME_MISMATCH", message, where=str(run.path), fix=fix)
    models, own = Models(facts, machine.device()), weights.at_chosen_scale(run, plan)

    def read(rows: Sequence[TokenSequence]) -> list[float]:
        with models.at(own) as model:
            return ChatModel(model, template, Decoding(1, ()), plan).scores(rows)

    return Loaded(template, facts.context, read)


def _of_folder(path: Path, date: str) -> Loaded:
    """In float32. Raises MODEL_UNSUPPORTED and what `model_files.check` and `load_template` raise."""
    model_files.check(path)
    template = load_template(path, None, date)
    module = None if template.encoder else merged.reload(path, Base(str(path), "", "")).model.module
    if module is None or head_of(module) is None:
        message = f"{path} is not a decoder with a linear head named `score`."
        raise ModelError("MODEL_UNSUPPORTED", message, where=WHERE, fix="use another reward model.")
    require_template(template)
    module, pad = module.to(machine.device()), module.config.pad_token_id
    together = 1 if pad is None else PADDED  # which transformers' class demands

    @torch.inference_mode()
    def read(rows: Sequence[TokenSequence]) -> list[float]:
        order, done = sorted(range(len(rows)), key=lambda i: len(rows[i].ids)), [0.0] * len(rows)
        for start in range(0, len(rows), together):
            part = order[start : start + together]
            batch = tagger.in_one_batch([rows[i].ids[:-1] for i in part], pad or 0)
            logits_N1 = module(**{k: v.to(module.device) for k, v in batch.items()}, use_cache=False).logits
            for i, score in zip(part, logits_N1[:, 0].tolist(), strict=True):
                done[i] = score
        return done

    return Loaded(
        template, int(getattr(module.config.get_text_config(), "max_position_embeddings", 0) or UNBOUNDED), read
    )
