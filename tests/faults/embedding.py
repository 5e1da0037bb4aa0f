"""Vectors of texts: what a query is compared with, prefixes, length, and the two phases of a step."""

from __future__ import annotations

import functools
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from build import WORDS, byte_tokenizer, plan_of, with_adapter

from faults import Fault, Patch, refused
from tunewright.core import config
from tunewright.core.config import EmbedConfig, Plan
from tunewright.data import dataset, near_duplicates
from tunewright.data.messages import Chat, Message
from tunewright.export import vectors as exported
from tunewright.judge.chat_model import ChatModel
from tunewright.judge.search.arms import families
from tunewright.judge.search.encoding import encode
from tunewright.methods import embed
from tunewright.methods.pairs import contrastive
from tunewright.model import adapters
from tunewright.model.decoding.generate import Decoding
from tunewright.model.heads import vectors
from tunewright.tokens import packing
from tunewright.tokens import texts as texts_
from tunewright.tokens.packing import Microbatch
from tunewright.tokens.sequences import TrainRow
from tunewright.tokens.template import Template
from tunewright.train import step

TEMPLATE = texts_.with_prefixes(Template(byte_tokenizer()), "find: ", "")
GIVEN = [("what burns", "fire"), ("who", "a man"), ("where", "in the old house"), ("what is hot", "fire"), ("w", "yy")]
TEMPERATURE = 0.1


def pair(query: str, document: str) -> Chat:
    return Chat((Message("user", query), Message("assistant", document)), "x:1", negatives=())


@functools.cache
def rows() -> list[TrainRow]:
    return [embed.prepare(TEMPLATE, pair(*given), i, None)[0] for i, given in enumerate(GIVEN)]


def plan(**more: Any) -> Plan:
    base = {"method": "embed", "layout": "shared", "batch_size": len(GIVEN), "max_grad_norm": 1e9}
    return plan_of(**{**base, "embed": EmbedConfig(query_prefix="find: ", temperature=TEMPERATURE), **more})


def model() -> Any:
    return with_adapter("llama", torch.float64, vocabulary=300)


def alone(lm: Any, ids: tuple[int, ...]) -> torch.Tensor:
    """The vector of a text, by transformers' own modules."""
    hidden: torch.Tensor = lm.decoder(torch.tensor([ids])).last_hidden_state[0, -1]
    return hidden / hidden.norm()


def by_hand(lm: Any) -> torch.Tensor:
    """The loss of the step: each query with every different document that does not answer it too."""
    documents = {row.sequences[1].ids[:-1]: None for row in rows()}
    document_CD = torch.stack([alone(lm, ids) for ids in documents])
    loss = torch.zeros((), dtype=torch.float64)
    for row in rows():
        logit_C = document_CD @ alone(lm, row.sequences[0].ids[:-1]) / TEMPERATURE
        loss = loss - logit_C.log_softmax(0)[list(documents).index(row.sequences[1].ids[:-1])]
    return loss / len(rows())


def the_step_is_that_of_all_its_texts() -> None:
    """Loss and gradient, whatever the passes."""
    lm = model()
    expected = by_hand(lm)
    expected.backward()  # type: ignore[no-untyped-call]
    wanted = {n: p.grad.clone() for n, p in adapters.trainable(lm.module).items() if p.grad is not None}
    for capacity in (4096, 60, 1):
        learner, asked = step.make_learner(model(), plan(tokens_per_pass=capacity)), plan(tokens_per_pass=capacity)
        taken = step.take_step(learner, rows(), asked, 0)
        assert abs(taken.loss - float(expected.detach())) < 1e-10
        for name, p in learner.parameters.items():
            assert p.grad is not None
            assert torch.allclose(p.grad, wanted[name], rtol=0, atol=1e-10), name


def one_contrast_for_each_pass(patch: Patch) -> None:
    made = embed.microbatches

    def apart(lm: Any, rows: Any, chosen: Any, asked: Plan, at: int) -> list[Microbatch]:
        groups = packing.split_into_passes(packing.units_of(rows, chosen), asked.tokens_per_pass, asked.layout)
        whole = asked.model_copy(update={"tokens_per_pass": 4096})
        return [part for group in groups for part in made(lm, rows, group, whole, at)]

    patch.setattr(embed, "microbatches", apart)


def every_row_has_a_candidate_of_its_own(patch: Patch) -> None:
    def repeated(rows: Any) -> Any:
        sequences, contrast = contrastive_texts(rows)
        candidate_C = contrast.candidate_C[contrast.positive_R]
        return sequences, contrastive.Contrast(
            contrast.anchor_R, candidate_C, np.arange(len(rows)), np.ones((len(rows), len(rows)), bool)
        )

    contrastive_texts = contrastive.texts_of
    patch.setattr(embed, "texts_of", repeated)


def lengths_differ(patch: Patch) -> None:
    patch.setattr(vectors, "F", type("Functional", (), {"normalize": staticmethod(lambda x, dim: x)}))


def the_first_phase_is_the_base_s(patch: Patch) -> None:
    """And nothing compares the two."""
    made = embed._of_step

    def off(lm: Any, *given: Any) -> list[Microbatch]:
        with adapters.off(lm.module):
            return made(lm, *given)

    patch.setattr(embed, "_of_step", off)
    patch.setattr(embed, "_require_same", lambda *given: None)


@torch.no_grad()
def the_dev_loss_is_that_of_steps() -> None:
    """Each dev row is compared with the documents of as many rows as in a step, also those of the last, short group."""
    lm, size = model(), 3
    order = [rows()[i] for i in packing.epoch_order(len(rows()), 0, 0)]
    total = 0.0
    for begin, counted in ((0, 0), (2, 1)):
        documents = {row.sequences[1].ids[:-1]: None for row in order[begin : begin + size]}
        document_CD = torch.stack([alone(lm, ids) for ids in documents])
        for row in order[begin + counted : begin + size]:
            logit_C = document_CD @ alone(lm, row.sequences[0].ids[:-1]) / TEMPERATURE
            total -= float(logit_C.log_softmax(0)[list(documents).index(row.sequences[1].ids[:-1])])
    for capacity in (4096, 30, 1):
        asked = plan(tokens_per_pass=capacity, batch_size=size, seed=0)
        assert abs(step.dev_loss(lm, rows(), asked) - total / len(rows())) < 1e-10


def all_dev_rows_are_compared(patch: Patch) -> None:
    made = embed.microbatches

    def together(lm: Any, given: Any, chosen: Any, asked: Plan, at: int) -> list[Microbatch]:
        return made(lm, given, chosen, asked.model_copy(update={"batch_size": len(chosen)}), at)

    patch.setattr(embed, "microbatches", together)


def the_last_group_is_short(patch: Patch) -> None:
    made = embed._of_step
    patch.setattr(embed, "_of_step", lambda lm, given, counted, asked: made(lm, given[counted:], 0, asked))


def phases_with_other_weights_are_refused() -> None:
    lm = model()
    parts = embed.microbatches(lm, rows(), range(len(rows())), plan(tokens_per_pass=60), 0)
    with adapters.off(lm.module):
        refused("TRAIN_PASSES_DIFFER", lambda: embed.loss(lm, parts[0], plan()))


def nothing_is_compared(patch: Patch) -> None:
    patch.setattr(embed, "_require_same", lambda *given: None)


def a_query_has_its_prefix_everywhere() -> None:
    """In training, in search, and in what sentence-transformers reads of an export."""
    spelled = TEMPLATE.tokenizer.decode(rows()[0].sequences[0].ids[:-2])
    assert spelled == "find: what burns"
    lm = model()
    answering = ChatModel(lm, TEMPLATE, Decoding(1, ()), plan())
    with torch.no_grad():
        wanted = alone(lm, rows()[0].sequences[0].ids[:-1]).numpy()
    assert np.allclose(encode(answering, ["what burns"], "query")[0], wanted, atol=1e-6)
    with tempfile.TemporaryDirectory() as folder:
        adapters.merge(lm.module)
        source: Any = type("Source", (), {"plan": plan(), "template": TEMPLATE})
        exported.write(source, lm.module, Path(folder), "float32")
        made = exported.reload(Path(folder))
        assert made.embed is not None
        assert np.allclose(made.embed(["what burns"], "query")[0].numpy(), wanted, atol=1e-5)


def searched_without_it(patch: Patch) -> None:
    patch.setattr(
        "tunewright.judge.search.encoding.text_ids",
        lambda t, text, kind, most: texts_.text_ids(replace(t, prefixes=("", "")), text, kind, most),
    )


def exported_without_it(patch: Patch) -> None:
    write = exported.write_json
    patch.setattr(
        exported,
        "write_json",
        lambda file, value: write(
            file, {**value, "prompts": {"query": "", "document": ""}} if "prompts" in value else value
        ),
    )


def exported_without_the_end(patch: Patch) -> None:
    patch.setattr(exported, "appended_end", lambda template: None)


def loaded() -> Any:
    """Rows in which two queries have nearly the same document."""
    written = []
    for i in range(60):
        text = " ".join(f"{WORDS[(i // 2 * k + k) % 10]} {i // 2 * k}" for k in range(1, 8))
        written.append({"anchor": f"{i}: {WORDS[i * 3 % 10]} {i * i}?", "positive": text + "!" * (i % 2)})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.jsonl")
        file.write_text("".join(json.dumps(r) + "\n" for r in written), encoding="utf-8")
        return dataset.load(config.load(None, ["train.method=embed"], data__train=str(file)))


def no_document_is_on_two_sides() -> None:
    data = loaded()
    assert {*data.sides} == {"train", "dev", "test"}
    for i in range(0, 60, 2):
        assert data.sides[i] == data.sides[i + 1]


def split_by_queries_alone(patch: Patch) -> None:
    patch.setattr(near_duplicates, "joined", lambda one, other: one)


def all_documents_are_searched() -> None:
    """Those of train, too, and a near-duplicate of the right one is right."""
    corpus = loaded().task.corpus
    assert len(corpus.documents) == 60
    assert all(len(own) == 2 for own in corpus.relevant.values())
    assert families(corpus, False, True)["tuned"][0].responder.corpus is corpus  # type: ignore[attr-defined]


def the_corpus_is_that_of_test(patch: Patch) -> None:
    whole = dataset.configured
    patch.setattr(dataset, "configured", lambda c, task, train, every: whole(c, task, train, every[:12]))


FAULTS = [
    Fault(91, "negatives of a step are those of one pass: accumulation is taken for a batch", "sentence-transformers 2916, 3862", "loss and gradient are those of all texts of the step, whatever its passes",
          the_step_is_that_of_all_its_texts, one_contrast_for_each_pass),
    Fault(92, "the document of a row is a wrong answer to another row with the same document", "sentence-transformers 3189", "every different document is a candidate once",
          the_step_is_that_of_all_its_texts, every_row_has_a_candidate_of_its_own),
    Fault(93, "vectors are not set to length 1", "", "loss and gradient are those of cosines",
          the_step_is_that_of_all_its_texts, lengths_differ),
    Fault(94, "the derivatives of a step are those of other weights than its passes have", "sentence-transformers 3862", "loss and gradient are those of one graph over all texts",
          the_step_is_that_of_all_its_texts, the_first_phase_is_the_base_s),
    Fault(95, "a text gets another vector in the second phase, by dropout or by other weights", "", "TRAIN_PASSES_DIFFER",
          phases_with_other_weights_are_refused, nothing_is_compared),
    Fault(96, "queries are searched without the prefix of training", "", "a query's vector is that of the text with its prefix",
          a_query_has_its_prefix_everywhere, searched_without_it),
    Fault(97, "an export of vectors has no prefixes", "", "sentence-transformers' vector of a query is that of the text with its prefix; EXPORT_MISMATCH",
          a_query_has_its_prefix_everywhere, exported_without_it),
    Fault(98, "an exported decoder's vector is not read at the end token of training", "", "sentence-transformers' vector of a text is read where it was trained; EXPORT_MISMATCH",
          a_query_has_its_prefix_everywhere, exported_without_the_end),
    Fault(99, "a held-out query's document was learned with another query", "", "near-duplicate documents are on one side of the split",
          no_document_is_on_two_sides, split_by_queries_alone),
    Fault(100, "held-out queries search only held-out documents, which is easier", "", "the documents of all rows are searched",
          all_documents_are_searched, the_corpus_is_that_of_test),
    Fault(107, "the dev loss compares all dev rows with one another, and grows with their number", "", "the dev loss is the mean over groups of as many rows as a step has",
          the_dev_loss_is_that_of_steps, all_dev_rows_are_compared),
    Fault(108, "dev rows of a short last group have an easier comparison", "", "the last group is filled up with rows that were counted before",
          the_dev_loss_is_that_of_steps, the_last_group_is_short),
]  # fmt: skip
