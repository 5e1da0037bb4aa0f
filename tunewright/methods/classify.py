"""Classification: cross-entropy of a linear head's logits at the last token of the prompt, as it is served.

A row is its prompt and one token more, in whose place the head answers: so the last token of the prompt is where the
row's only prediction is made, by its length, whatever tokens the prompt contains. The label is the row's signal; the
plan says which output it is. Axes: R rows, N different prompts, C labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import log

import numpy as np
import torch.nn.functional as F

from tunewright.core.config import Plan
from tunewright.data.messages import Example
from tunewright.methods.method import Loss, as_prepared, as_written
from tunewright.model import forward
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.packing import Microbatch, split_into_passes, to_microbatch, units_of
from tunewright.tokens.rendering import for_generation, for_training
from tunewright.tokens.sequences import TrainRow, flat, head_sequence
from tunewright.tokens.template import Template

options, precompute = as_written, as_prepared


def prepare(template: Template, example: Example, row: int, max_length: int | None) -> list[TrainRow]:
    """One row: the prompt, after all checks of supervised fine-tuning, and the label as UTF-8. An encoder's prompt is a
    text, and is not followed by an answer."""
    if template.encoder:
        prompt: Sequence[int] = for_generation(template, example.prompt)
    else:
        prompt = for_training(template, example, row, max_length)[-1].prompt
    signal = {"answer": np.frombuffer(example.target.encode(), np.uint8)}
    return [TrainRow((head_sequence(prompt, template.eos, row),), row, signal)]


def microbatches(
    model: LanguageModel, rows: Sequence[TrainRow], chosen: Sequence[int], plan: Plan, step: int
) -> list[Microbatch]:
    output = {label: n for n, label in enumerate(plan.labels)}
    return with_targets(rows, chosen, plan, output.__getitem__)


def with_targets(
    rows: Sequence[TrainRow], chosen: Sequence[int], plan: Plan, target: Callable[[str], float | list[float]]
) -> list[Microbatch]:
    """The microbatches of a head's batch; ``target``: of an answer."""
    made = []
    for group in split_into_passes(units_of(rows, chosen), plan.tokens_per_pass, plan.layout):
        part = [rows[i] for i in group]
        microbatch = to_microbatch(flat(part), plan.layout)
        target_R = np.array([target(r.signal["answer"].tobytes().decode()) for r in part])
        made.append(replace(microbatch, signal={"target_R": target_R}))
    return made


def weight(microbatch: Microbatch) -> float:
    """The number of rows."""
    return len(microbatch.signal["target_R"])


def loss(model: LanguageModel, microbatch: Microbatch, plan: Plan) -> Loss:
    logits_NC = forward.head_logits(model, microbatch, plan.gradient_checkpointing)
    # Rows with the same prompt are one prediction, but may have different labels.
    logits_RC = logits_NC[forward.on_device(model, microbatch.prediction_M)]
    target_R = forward.on_device(model, microbatch.signal["target_R"])
    correct_R = logits_RC.detach().argmax(1) == target_R
    return Loss(F.cross_entropy(logits_RC, target_R, reduction="sum"), {"accuracy": correct_R.sum()})


def initial_loss(plan: Plan, rows: Sequence[TrainRow]) -> float | None:
    """A head of zeros finds all labels equally probable."""
    return log(len(plan.labels))
