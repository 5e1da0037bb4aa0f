"""Tagging: cross-entropy of a linear head's logits at the first token of every word; other tokens are not supervised.

A row is its text without a chat template, as its tokenizer writes it (`encoder_text`), and a place behind it that is
not read. An encoder sees the whole text; a decoder sees what comes before, and of the word itself its first token.
Axes: M words of all rows (and the ends of rows that have tokens behind their last word's first, which have no tag), N
predictions, C tags.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import log

import numpy as np
import torch.nn.functional as F

from tunewright.core.config import Plan
from tunewright.data.messages import Example, Prompt
from tunewright.data.task.tags import words
from tunewright.methods.method import Loss, as_prepared, as_written
from tunewright.model import forward
from tunewright.model.language_model import LanguageModel
from tunewright.tokens import encoder_text
from tunewright.tokens.packing import Microbatch, split_into_passes, to_microbatch, units_of
from tunewright.tokens.sequences import TokenSequence, TrainRow, flat
from tunewright.tokens.template import Template

NO_TAG = -100  # of the place behind a text


options, precompute = as_written, as_prepared


def sequence(template: Template, prompt: Prompt, row: int) -> TokenSequence:
    """The text, with a prediction at the first token of each word, and one at its last token, so that the text is read
    to its end; that one has no tag, unless the last word is this token. Raises DATA_FORM_UNSUPPORTED and
    DATA_SPECIAL_TOKEN_TEXT."""
    ids, starts = encoder_text.with_words(template.tokenizer, prompt)
    predicting = {start + 1 for start in starts}
    weights = [float(t in predicting) for t in range(len(ids))]
    return TokenSequence((*ids, template.eos), (*weights, 1.0), row)


def prepare(template: Template, example: Example, row: int, max_length: int | None) -> list[TrainRow]:
    """One row, with the tags as UTF-8."""
    signal = {"answer": np.frombuffer(example.target.encode(), np.uint8)}
    return [TrainRow((sequence(template, example.prompt, row),), row, signal)]


def microbatches(
    model: LanguageModel, rows: Sequence[TrainRow], chosen: Sequence[int], plan: Plan, step: int
) -> list[Microbatch]:
    output, made = {tag: n for n, tag in enumerate(plan.labels)}, []
    for group in split_into_passes(units_of(rows, chosen), plan.tokens_per_pass, plan.layout):
        part = [rows[i] for i in group]
        target_M = np.array([target for row in part for target in _targets(row, output)])
        made.append(replace(to_microbatch(flat(part), plan.layout), signal={"target_M": target_M}))
    return made


def _targets(row: TrainRow, output: Mapping[str, int]) -> list[int]:
    own = [output[tag] for tag in words(row.signal["answer"].tobytes().decode())]
    return [*own, *[NO_TAG] * (row.supervised - len(own))]


def weight(microbatch: Microbatch) -> float:
    """The number of words."""
    return float((microbatch.signal["target_M"] != NO_TAG).sum())


def loss(model: LanguageModel, microbatch: Microbatch, plan: Plan) -> Loss:
    logits_NC = forward.head_logits(model, microbatch, plan.gradient_checkpointing)
    # Texts that begin alike make one prediction in the layout "shared", but may have different tags there.
    logits_MC = logits_NC[forward.on_device(model, microbatch.prediction_M)]
    target_M = forward.on_device(model, microbatch.signal["target_M"])
    correct_M = logits_MC.detach().argmax(1) == target_M
    return Loss(
        F.cross_entropy(logits_MC, target_M, reduction="sum", ignore_index=NO_TAG), {"accuracy": correct_M.sum()}
    )


def initial_loss(plan: Plan, rows: Sequence[TrainRow]) -> float | None:
    """A head of zeros finds all tags equally probable."""
    return log(len(plan.labels))
