"""Vectors of texts, for search: the contrastive loss over all texts of a step, exact however the step is divided into
passes (GradCache, Gao et al. 2021, 2101.06983).

A row is a query, the document that answers it, and documents that do not. The loss of a row depends on all documents
of the step, so it is no sum over passes. `microbatches` therefore computes the vectors of all texts first, pass by pass
and without gradients, and the derivative of the step's loss by each vector, for which the vectors are enough. In
`loss`, a pass computes its vectors again; their products with these derivatives have the gradient of the whole loss. If
all texts fit in one pass, it computes the loss directly.

Axes: R rows, S texts of a pass or a step, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tunewright.core.config import MethodOptions, Plan
from tunewright.core.errors import TrainError, data_error
from tunewright.data.messages import Chat, Example
from tunewright.data.text import content_hash
from tunewright.methods.method import Loss, Progress
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
FIRST_PHASE = ("loss_1", "right_1", "vector_SD", "derivative_SD")


def options(options: MethodOptions) -> MethodOptions:
    """As they are."""
    return options


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


def precompute(model: LanguageModel, rows: Sequence[TrainRow], plan: Plan, progress: Progress) -> list[TrainRow]:
    """Nothing."""
    return list(rows)


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
    if len(parts) > 1:
        return _cached(model, parts, groups, contrast, plan)
    place_S = np.empty(len(sequences), np.int64)
    place_S[groups[0]] = np.arange(len(sequences))
    rows_1 = np.array([len(contrast.anchor_R)])
    return [replace(parts[0], signal={**contrast.renumbered(place_S).signal, "rows_1": rows_1})]


def _cached(
    model: LanguageModel, parts: Sequence[Microbatch], groups: Sequence[Sequence[int]], contrast: Contrast, plan: Plan
) -> list[Microbatch]:
    """The passes, with the losses of the rows whose queries they contain. In a step, also with the vectors of their
    texts, and the derivatives of the loss by these."""
    assert plan.embed is not None
    is_step = torch.is_grad_enabled()
    with torch.no_grad():
        own = [vectors.of_texts(model, part, vectors.pooling(plan)) for part in parts]
        place_S = np.argsort(np.concatenate([np.asarray(group) for group in groups]))
        vector_SD = torch.cat(own)[forward.on_device(model, place_S)]
    leaf_SD = vector_SD.detach().requires_grad_()
    loss_R, right_R = losses(leaf_SD, contrast, plan.embed.temperature)
    derivative_SD = torch.autograd.grad(loss_R.sum(), leaf_SD)[0] if is_step else None
    made, value_R, hit_R = [], loss_R.detach().double().cpu().numpy(), right_R.cpu().numpy()
    for part, group in zip(parts, groups, strict=True):
        mine_R = np.isin(contrast.anchor_R, group)
        signal = {
            "loss_1": np.array([value_R[mine_R].sum()]),
            "right_1": np.array([hit_R[mine_R].sum()]),
            "rows_1": np.array([mine_R.sum()]),
        }
        if derivative_SD is not None:
            of_texts = {"vector_SD": vector_SD, "derivative_SD": derivative_SD}
            signal |= {name: of_S[group].cpu().numpy() for name, of_S in of_texts.items()}
        made.append(replace(part, signal=signal))
    return made


def weight(microbatch: Microbatch) -> float:
    """The number of rows whose queries it contains."""
    return float(microbatch.signal["rows_1"][0])


def loss(model: LanguageModel, microbatch: Microbatch, plan: Plan) -> Loss:
    """Of the rows whose queries the pass contains; its gradient, of the whole step with respect to the pass's texts.
    Raises TRAIN_PASSES_DIFFER."""
    assert plan.embed is not None
    signal = microbatch.signal
    first = {name: forward.on_device(model, signal[name]) for name in FIRST_PHASE if name in signal}
    if first and "derivative_SD" not in first:  # of a dev loss, of which no gradient is wanted
        return Loss(first["loss_1"].sum(), {"accuracy": first["right_1"].sum()})
    vector_SD = vectors.of_texts(model, microbatch, vectors.pooling(plan), plan.gradient_checkpointing)
    if not first:
        loss_R, right_R = losses(vector_SD, Contrast.of_signal(signal), plan.embed.temperature)
        return Loss(loss_R.sum(), {"accuracy": right_R.sum()})
    _require_same(vector_SD.detach(), first["vector_SD"], plan)
    product = (vector_SD * first["derivative_SD"]).sum()
    value = product - product.detach() + first["loss_1"].sum().to(product.dtype)
    return Loss(value, {"accuracy": first["right_1"].sum()})


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


def initial_loss(plan: Plan, rows: Sequence[TrainRow]) -> float | None:
    """Unknown."""
    return None
