"""Vectors of texts, for search: the contrastive loss over all texts of a step, exact however the step is divided into
passes (GradCache, Gao et al. 2021, 2101.06983).

A row is a query, the document that answers it, and documents that do not. The loss of a row depends on all documents
of the step, so it is no sum over passes: a step of several passes is computed in two phases (`pairs.two_phase`).

Axes: S texts of a pass or a step, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from tunewright.core.config import Plan
from tunewright.core.errors import TrainError, data_error
from tunewright.data.messages import Chat, Example
from tunewright.data.text import content_hash
from tunewright.methods.method import Loss, as_prepared, as_written, unknown
from tunewright.methods.pairs import two_phase
from tunewright.methods.pairs.contrastive import Contrast, losses, texts_of
from tunewright.model import forward
from tunewright.model.heads import vectors
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.packing import Microbatch, epoch_order, singles, split_into_passes, to_microbatch
from tunewright.tokens.sequences import TrainRow, head_sequence
from tunewright.tokens.template import Template
from tunewright.tokens.texts import Kind, spells_special, text_ids

# How far a vector of length 1 may be from the one that was computed without gradients, in the same pass.
SAME = {"float32": 1e-3, "bfloat16": 0.1}

options, precompute, initial_loss = as_written, as_prepared, unknown


def prepare(template: Template, example: Example, row: int, max_length: int | None) -> list[TrainRow]:
    """One row: the query, its document and the negatives, each with its prefix and its end."""
    if not isinstance(example, Chat) or example.negatives is None:
        fix = "leave data.format at auto, or use another train.method."
        raise data_error("DATA_FORM_UNSUPPORTED", "embed needs pairs of texts.", where=example.where, fix=fix)
    documents = (example.target, *example.negatives)
    given: list[tuple[str, Kind]] = [(example.question, "query"), *((text, "document") for text in documents)]
    ids = [text_ids(template, text, kind) for text, kind in given]
    if any(spells_special(template, own, kind) for own, (_, kind) in zip(ids, given, strict=True)):
        message, fix = "a text spells a special token, and is read as that token.", "remove it, or drop the row."
        raise data_error("DATA_SPECIAL_TOKEN_TEXT", message, where=example.where, fix=fix)
    sequences = tuple(head_sequence(own, own[-1], row) for own in ids)
    says = [int(content_hash(text)[:15], 16) for text, _ in given]
    return [TrainRow(sequences, row, {"text_S": np.array(says)})]


def microbatches(
    model: LanguageModel, rows: Sequence[TrainRow], chosen: Sequence[int], plan: Plan, step: int
) -> list[Microbatch]:
    """Of a step. Dev rows are read in groups of as many rows as a step has: compared with as many documents as in
    training, their loss is on the scale of the training loss, however many they are."""
    count, size = len(chosen), plan.batch_size
    if count <= size:
        return _of_step(model, [rows[i] for i in chosen], 0, plan)
    shuffled = [rows[chosen[i]] for i in epoch_order(count, plan.seed, 0)]
    parts: list[Microbatch] = []
    for start in range(0, count, size):
        first = min(start, count - size)  # the last group is filled up with rows that were counted before
        parts += _of_step(model, shuffled[first : first + size], start - first, plan)
    return parts


def _of_step(model: LanguageModel, rows: Sequence[TrainRow], counted: int, plan: Plan) -> list[Microbatch]:
    """The passes of rows that are compared with one another. The first ``counted`` have no loss."""
    texts, contrast = texts_of(rows)
    contrast = contrast.without(counted)
    sequences = [vectors.pooled(text, vectors.pooling(plan)) for text in texts]
    groups = split_into_passes(singles([s.ids for s in sequences]), plan.tokens_per_pass, plan.layout)
    parts = [to_microbatch([sequences[i] for i in group], plan.layout) for group in groups]
    contrast = contrast.renumbered(np.argsort([i for group in groups for i in group]))
    rows_1 = np.array([len(contrast.anchor_R)])
    if len(parts) == 1:
        return [replace(parts[0], signal={**contrast.signal, "rows_1": rows_1})]
    made = two_phase.with_slopes(
        parts,
        lambda part: vectors.of_texts(model, part, vectors.pooling(plan)),
        lambda vector_SD: _loss_of(vector_SD, contrast, plan),
    )
    return [replace(part, signal={**part.signal, "rows_1": rows_1 * (n == 0)}) for n, part in enumerate(made)]


def weight(microbatch: Microbatch) -> float:
    """The number of rows, all of them in the first pass of a step."""
    return float(microbatch.signal["rows_1"][0])


def loss(model: LanguageModel, microbatch: Microbatch, plan: Plan) -> Loss:
    """Raises TRAIN_PASSES_DIFFER."""
    signal = microbatch.signal

    def of_texts() -> Tensor:
        vector_SD = vectors.of_texts(model, microbatch, vectors.pooling(plan), plan.gradient_checkpointing)
        if "number_S" in signal:
            _require_same(vector_SD.detach(), forward.on_device(model, signal["number_S"]), plan)
        return vector_SD

    return two_phase.loss(
        model, microbatch, of_texts, lambda vector_SD: _loss_of(vector_SD, Contrast.of_signal(signal), plan)
    )


def _loss_of(vector_SD: Tensor, contrast: Contrast, plan: Plan) -> Loss:
    assert plan.embed is not None
    loss_R, right_R = losses(vector_SD, contrast, plan.embed.temperature)
    return Loss(loss_R.sum(), {"accuracy": right_R.sum()})


def _require_same(vector_SD: Tensor, first_SD: Tensor, plan: Plan) -> None:
    """Otherwise the derivatives are those of other vectors."""
    gap = float((vector_SD - first_SD).norm(dim=1).max())
    if gap > SAME[plan.dtype]:
        raise TrainError(
            "TRAIN_PASSES_DIFFER",
            f"a text has another vector when it is computed again (distance {gap:.3f}), so that a step cannot be "
            "divided into passes; the model may draw random numbers in training.",
            fix="raise train.tokens_per_pass, or lower train.batch_size, until a step is one pass.",
        )
