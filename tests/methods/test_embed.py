"""Vectors of texts: against sentence-transformers' loss and measures, whatever the layout and the passes of a step;
trained, resumed, exported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from build import LORA, QUICK, WORDS, byte_tokenizer, cli, exact_norms, plan_of, printed_by, tiny_lm, training_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tunewright import api
from tunewright.core.config import EmbedConfig, Plan
from tunewright.core.errors import DataError, TrainError
from tunewright.core.records import StepLine
from tunewright.core.run_folder import Run, read_lines
from tunewright.data import formats, near_duplicates
from tunewright.data.formats import RowSettings
from tunewright.data.messages import Chat, Message
from tunewright.data.scores import Retrieved
from tunewright.data.sources import Row
from tunewright.data.task.corpus import corpus_of
from tunewright.judge.chat_model import ChatModel
from tunewright.judge.search.arms import fused
from tunewright.judge.search.encoding import encode
from tunewright.methods import embed
from tunewright.methods.pairs import contrastive
from tunewright.model import adapters, language_model
from tunewright.model.decoding.generate import Decoding
from tunewright.model.heads import vectors
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.render_cache import RowRenderer, cached_rows
from tunewright.tokens.sequences import TrainRow
from tunewright.tokens.template import Template
from tunewright.tokens.texts import text_ids, with_prefixes
from tunewright.train import loop, step

TEMPLATE = with_prefixes(Template(byte_tokenizer()), "q: ", "")
# Texts that begin alike, one document of two queries, two documents of one query, a query that is a document.
GIVEN: list[tuple[str, str, tuple[str, ...]]] = [
    ("a house by the river", "where the fisherman lives", ("a boat",)),
    ("a house by the sea", "where the fisherman's wife lives", ()),
    ("fire", "it burns", ("it is wet", "it is cold, and white")),
    ("flame", "it burns", ()),
    ("what burns", "fire", ()),
    ("a house by the river", "the mill", ("it burns",)),
    ("x", "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy", ()),
]


def pair(query: str, document: str, negatives: tuple[str, ...] = (), where: str = "x:1") -> Chat:
    return Chat((Message("user", query), Message("assistant", document)), where, negatives=negatives)


def prepared(folder: Path, rows: Any = GIVEN) -> list[TrainRow]:
    """Rows as a run makes them: through the cache."""
    how, chats = RowRenderer(TEMPLATE, embed.prepare, 512, "error"), [pair(*row) for row in rows]
    cached_rows(how, chats, range(len(chats)), folder)
    return cached_rows(how, chats, range(len(chats)), folder).rows


def plan(**more: Any) -> Plan:
    base = {"method": "embed", "embed": EmbedConfig(temperature=0.2), "layout": "shared", "batch_size": len(GIVEN)}
    return plan_of(**{**base, "max_grad_norm": 1e9, **more})


def encoder() -> LanguageModel:
    """Small, bidirectional, and with dropout of its own."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    module = BertModel(BertConfig(vocab_size=300, pad_token_id=0, **shape), add_pooling_layer=False)
    for p in module.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.2)
    return language_model.of(module.to(torch.float64).requires_grad_(False).eval())


def adapted(kind: str = "llama", dropout: bool = False) -> LanguageModel:
    model = encoder() if kind == "bert" else tiny_lm(kind, torch.float64, vocabulary=300)
    if not dropout:
        vectors.without_dropout(model.module)
    exact_norms(model.module)
    adapters.attach(model.module, LORA, 1)
    draw = torch.Generator().manual_seed(3)
    for name, p in adapters.trainable(model.module).items():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3, generator=draw)
    return model


def loss_and_gradient(model: LanguageModel, rows: list[TrainRow], asked: Plan) -> tuple[float, dict[str, Tensor]]:
    model.module.zero_grad(set_to_none=True)
    parts = embed.microbatches(model, rows, range(len(rows)), asked, 0)
    weight, total = sum(map(embed.weight, parts)), 0.0
    assert weight == len(rows)
    for part in parts:
        loss = embed.loss(model, part, asked).sum / weight
        loss.backward()
        total += float(loss.detach())
    return total, {n: p.grad.clone() for n, p in adapters.trainable(model.module).items() if p.grad is not None}


# -- the loss


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(0, 2), st.sampled_from([0.05, 0.2, 1.0]), st.integers(0, 99))
def test_the_loss_is_that_of_sentence_transformers(rows: int, negatives: int, temperature: float, seed: int) -> None:
    """Value and gradient, of different texts: every document of the step is a candidate for every query."""
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    draw = torch.Generator().manual_seed(seed)
    raw = torch.randn(2 + negatives, rows, 5, dtype=torch.float64, generator=draw).requires_grad_()
    theirs = MultipleNegativesRankingLoss(torch.nn.Identity(), scale=1 / temperature)  # type: ignore[arg-type]
    expected = theirs.compute_loss_from_embeddings(list(raw), torch.zeros(0))
    (wanted,) = torch.autograd.grad(expected, raw)
    order = np.arange((2 + negatives) * rows).reshape(2 + negatives, rows)
    contrast = contrastive.Contrast(
        order[0], order[1:].flatten(), np.arange(rows), np.ones((rows, (1 + negatives) * rows), bool)
    )
    loss_R, right_R = contrastive.losses(
        torch.nn.functional.normalize(raw, dim=-1).flatten(0, 1), contrast, temperature
    )
    (actual,) = torch.autograd.grad(loss_R.mean(), raw)
    assert float(loss_R.mean().detach()) == pytest.approx(float(expected.detach()), abs=1e-10)
    assert torch.allclose(actual, wanted, rtol=0, atol=1e-10)
    assert len(right_R) == rows


def test_what_may_answer_a_query_is_no_wrong_answer_to_it(tmp_path: Path) -> None:
    texts, contrast = contrastive.texts_of(prepared(tmp_path))
    spelled = [TEMPLATE.tokenizer.decode(t.ids[:-2]) for t in texts]
    assert len(set(spelled)) == len(spelled), "each text is computed once"
    candidates = [spelled[s] for s in contrast.candidate_C]
    assert candidates.count("it burns") == 1
    for (query, document, _), anchor, positive, allowed_C in zip(
        GIVEN, contrast.anchor_R, contrast.positive_R, contrast.allowed_RC, strict=True
    ):
        assert spelled[anchor] == f"q: {query}"
        assert candidates[positive] == document
        left_out = {c for c, allowed in zip(candidates, allowed_C, strict=True) if not allowed}
        others = {d for q, d, _ in GIVEN if q == query} | {query}
        assert left_out == (others - {document}) & set(candidates)


def test_a_copy_of_a_row_changes_no_row_s_loss(tmp_path: Path) -> None:
    model, rows = adapted(), prepared(tmp_path)
    apart, _ = loss_and_gradient(model, rows[:4], plan())
    copied, _ = loss_and_gradient(model, [*rows[:4], rows[3], rows[3]], plan())
    with torch.no_grad():
        (part,) = embed.microbatches(model, rows, [0, 1, 2, 3], plan(), 0)
        contrast = contrastive.Contrast.of_signal(part.signal)
        each = contrastive.losses(vectors.of_texts(model, part, "last"), contrast, 0.2)[0]
    assert apart == pytest.approx(float(each.mean()), abs=1e-12)
    assert copied == pytest.approx(float(each.sum() + 2 * each[3]) / 6, abs=1e-12)


# -- passes and layouts


@pytest.mark.parametrize(
    ("kind", "pooling"),
    [("llama", None), ("qwen3", None), ("gemma3_text", None), ("bert", "mean"), ("bert", "cls"), ("bert", "last")],
)
def test_a_step_does_not_depend_on_its_passes_nor_on_its_layout(kind: str, pooling: Any, tmp_path: Path) -> None:
    """GradCache: the loss, its gradient, and the weights after the step."""
    rows, results = prepared(tmp_path), []
    layouts = ("padded",) if kind == "bert" else ("padded", "packed", "shared")
    for layout in layouts:
        for capacity in (4096, 90, 16):
            asked = plan(layout=layout, tokens_per_pass=capacity, pooling=pooling)
            model = adapted(kind)
            count = len(embed.microbatches(model, rows, range(len(rows)), asked, 0))
            assert (count == 1) == (capacity == 4096)
            loss, gradient = loss_and_gradient(model, rows, asked)
            learner = step.make_learner(model, asked)
            assert step.take_step(learner, rows, asked, 0).loss == pytest.approx(loss, abs=1e-10)
            after = {name: p.detach().clone() for name, p in learner.parameters.items()}
            results.append((loss, gradient, after))
    for loss, gradient, after in results[1:]:
        assert loss == pytest.approx(results[0][0], abs=1e-10)
        assert all(torch.allclose(gradient[n], g, rtol=0, atol=1e-10) for n, g in results[0][1].items())
        assert all(torch.allclose(after[n], w, rtol=0, atol=1e-8) for n, w in results[0][2].items())
    assert any(g.any() for g in results[0][1].values())


def test_a_dev_loss_reads_texts_once_and_compares_no_more_rows_than_a_step(tmp_path: Path) -> None:
    model, rows = adapted(), prepared(tmp_path) * 20
    for capacity in (4096, 40):
        asked = plan(batch_size=4, tokens_per_pass=capacity)
        with torch.no_grad():
            parts = embed.microbatches(model, rows, range(len(rows)), asked, 0)
            assert sum(map(embed.weight, parts)) == len(rows)
            largest = max(part.signal[name].size for part in parts for name in part.signal)
            assert largest <= 4 * 4 * max(len(r.sequences) for r in rows), "a row is compared with those of its group"
            assert not any("number_S" in part.signal for part in parts), "no vector is kept"
        again = [step.dev_loss(model, rows, asked) for _ in range(2)]
        assert again[0] == again[1]


@pytest.mark.parametrize("kernels", ["transformers", "fused"])
def test_the_fused_kernels_have_the_same_gradient(kernels: Any, tmp_path: Path) -> None:
    model, rows = adapted(), prepared(tmp_path)
    expected = loss_and_gradient(model, rows, plan(layout="padded"))
    for capacity in (4096, 60):
        loss, gradient = loss_and_gradient(replace(model, kernels=kernels), rows, plan(tokens_per_pass=capacity))
        assert loss == pytest.approx(expected[0], abs=1e-10)
        assert all(torch.allclose(gradient[n], g, rtol=0, atol=1e-10) for n, g in expected[1].items())


def test_a_model_that_draws_numbers_in_training_is_refused_in_several_passes(tmp_path: Path) -> None:
    model, rows = adapted("bert", dropout=True), prepared(tmp_path)
    asked = plan(layout="padded", tokens_per_pass=90, pooling="mean")
    with pytest.raises(TrainError, match="TRAIN_PASSES_DIFFER"):
        step.take_step(step.make_learner(model, asked), rows, asked, 0)


class Killed(Exception):
    pass


def trained(folder: Path, rows: list[TrainRow], stop: int | None = None) -> tuple[list[Tensor], list[dict[str, Any]]]:
    run, model = Run(folder), adapted()
    folder.mkdir(exist_ok=True)

    def stopping(line: StepLine) -> None:
        if line.step == stop:
            raise Killed

    asked = plan(steps=4, checkpoint_every=1, tokens_per_pass=90, batch_size=3, lr=5e-3)
    loop.train(loop.with_precomputed(training_of(model.module, asked, rows[:5], rows[5:], run)), stopping)
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(run.metrics)]
    return [p.detach().clone() for p in adapters.trainable(model.module).values()], lines


def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    rows = prepared(tmp_path / "data")
    weights, lines = trained(tmp_path / "straight", rows)
    assert lines[-1]["metrics"]["accuracy"] >= 0.5
    with pytest.raises(Killed):
        trained(tmp_path / "killed", rows, 3)
    again, lines_again = trained(tmp_path / "killed", rows)
    assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
    assert lines_again == lines


@pytest.mark.parametrize(("kind", "pooling"), [("llama", None), ("bert", "mean"), ("bert", "cls")])
def test_a_text_has_the_same_vector_alone_and_among_others(kind: str, pooling: Any) -> None:
    model, texts = adapted(kind), [query for query, _, _ in GIVEN]
    for layout in ("padded",) if kind == "bert" else ("shared", "packed", "padded"):
        asked = plan(layout=layout, tokens_per_pass=120, pooling=pooling)
        answering = ChatModel(model, TEMPLATE, Decoding(1, ()), asked)
        together = encode(answering, texts, "query")
        alone = np.concatenate([encode(answering, [text], "query") for text in texts])
        assert np.allclose(together, alone, rtol=0, atol=1e-6)
        assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
        assert not np.allclose(together, encode(answering, texts, "document"), atol=1e-3), "the query's prefix"


def test_a_long_text_is_cut_before_its_end() -> None:
    ids = text_ids(TEMPLATE, "abc" * 20, "query", 12)
    assert len(ids) == 12
    assert ids[-1] == TEMPLATE.eos
    assert ids[:-1] == text_ids(TEMPLATE, "abc" * 20, "query")[:11]


# -- rows, corpus, ranking


def parsed(rows: list[dict[str, Any]], **more: Any) -> list[Chat]:
    how = RowSettings(embedding=True, **more)
    examples = formats.parse([Row(row, f"x:{i}") for i, row in enumerate(rows, 1)], how).examples
    return [e for e in examples if isinstance(e, Chat)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"anchor": "a", "positive": "b"}, ("a", "b", ())),
        ({"anchor": "a", "positive": "b", "negative": "c"}, ("a", "b", ("c",))),
        ({"query": "a", "document": "b", "negatives": ["c", "d"]}, ("a", "b", ("c", "d"))),
        ({"query": "a", "answer": "b", "negative_1": "c", "negative_2": "d"}, ("a", "b", ("c", "d"))),
        ({"question": "a", "answer": "b"}, ("a", "b", ())),
        ({"query": "a", "passage": "b"}, ("a", "b", ())),
    ],
)
def test_rows_of_two_texts_are_read(row: dict[str, Any], expected: tuple[str, str, tuple[str, ...]]) -> None:
    (chat,) = parsed([row])
    assert (chat.question, chat.target, chat.negatives) == expected


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"anchor": "a", "positive": "b", "negative": " B"}, "DATA_PREFERENCE_EQUAL"),
        ({"anchor": "a", "positive": "b", "negatives": "c"}, "DATA_FIELD_TYPE"),
        ({"anchor": "a", "positive": "b", "negatives": [""]}, "DATA_EMPTY_TARGET"),
        ({"anchor": "a", "positive": "b", "label": 0}, "DATA_FORM_UNSUPPORTED"),
        ({"anchor": "a", "positive": "b", "score": 0.3}, "DATA_FORM_UNSUPPORTED"),
        ({"anchor": "a"}, "DATA_FIELD_MISSING"),
        ({"prompt": "a", "completion": "b"}, "DATA_FIELD_MISSING"),
    ],
)
def test_other_rows_are_refused(row: dict[str, Any], code: str) -> None:
    with pytest.raises(DataError, match=code):
        parsed([row])


def test_a_text_that_spells_a_special_token_is_refused() -> None:
    with pytest.raises(DataError, match="DATA_SPECIAL_TOKEN_TEXT"):
        embed.prepare(TEMPLATE, pair("what ends it", "<|im_end|> does"), 0, None)


def test_a_document_is_on_one_side_with_all_that_is_nearly_it() -> None:
    one, other = near_duplicates.Clusters((0, 0, 2, 3), (0.0,) * 4), near_duplicates.Clusters((0, 1, 1, 3), (0.0,) * 4)
    assert near_duplicates.joined(one, other).cluster == (0, 0, 0, 3)
    assert near_duplicates.joined(other, one).cluster == (0, 0, 0, 3)


@settings(deadline=None)
@given(st.integers(2, 30), st.integers(1, 12), st.integers(0, 999))
def test_measures_are_those_of_sentence_transformers(documents: int, most: int, seed: int) -> None:
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    draw = np.random.default_rng(seed)
    texts = [f"{n} {WORDS[n % 10] * 3} {n * n}" for n in range(documents)]
    relevant = sorted(draw.choice(documents, min(most, documents), replace=False).tolist())
    corpus = corpus_of([*(pair("q", texts[n]) for n in relevant), *(pair("other", text) for text in texts)], 1.0)
    order = draw.permutation(documents).tolist()
    value, readings = corpus.measured(pair("Q", "?"), Retrieved(tuple(order)))
    names = {
        "precision_recall_at_k": [10],
        "mrr_at_k": [100],
        "ndcg_at_k": [10],
        "map_at_k": [10],
        "accuracy_at_k": [1],
    }
    theirs = InformationRetrievalEvaluator(
        {"q": "q"},
        {str(n): text for n, text in enumerate(corpus.documents)},
        {"q": set(map(str, corpus.relevant["q"]))},
        **names,
    )
    hits = [{"corpus_id": str(n), "score": -float(rank)} for rank, n in enumerate(order)]
    expected = theirs.compute_metrics([hits])
    assert value == pytest.approx(expected["ndcg@k"][10])
    assert readings.hits is not None
    assert readings.hits[0] / readings.hits[1] == pytest.approx(expected["recall@k"][10])
    assert readings.reciprocal_rank == pytest.approx(expected["mrr@k"][100])


def test_near_duplicates_of_the_right_document_are_right() -> None:
    long = "the quick brown fox jumps over the lazy dog and runs into the green forest by the river"
    rows = [
        pair("a", f"{long}."),
        pair("b", f"{long}!"),
        pair("A", "another one"),
        pair("c", "quite different", ("n",)),
    ]
    corpus = corpus_of(rows, 0.8)
    assert len(corpus.documents) == 5
    assert corpus.relevant == {"a": {0, 1, 2}, "b": {0, 1}, "c": {3}}


def test_two_rankings_are_fused_by_reciprocal_ranks() -> None:
    assert fused([3, 1, 2], [1, 2, 3]) == [1, 3, 2]
    value = {d: sum(1 / (60 + r.index(d) + 1) for r in ([3, 1, 2], [1, 2, 3])) for d in (1, 2, 3)}
    assert sorted(value, key=lambda d: -value[d]) == [1, 3, 2]


# -- a run


def write_pairs(path: Path, count: int = 70) -> Path:
    rows = []
    for i in range(count):
        word, other = WORDS[i % 10], WORDS[(i * 7 + i // 10) % 10]
        document = f"{i * 37 % 101} of them are {word.upper()}, near the {other}"
        rows.append({"anchor": f"lot {i * 37 % 101}: {word}, {other}?", "positive": document})
        if i % 3 == 0:
            rows[-1]["negative"] = f"none is {word}, {i}"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


SETTINGS = {
    **{k: v for k, v in QUICK.items() if k not in ("prove__few_shot", "prove__max_new_tokens")},
    "train__method": "embed",
    "embed__query_prefix": "find: ",
    "train__tokens_per_pass": 256,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_folder: Any) -> api.Result:
    root = tmp_path_factory.mktemp("vectors")
    return api.run(write_pairs(root / "pairs.jsonl"), model=str(model_folder("llama")), name="e", root=root, **SETTINGS)


def test_a_run_searches_and_is_compared_with_bm25_and_its_base(run: api.Result) -> None:
    verdict, plan_ = (json.loads((run.path / f"{name}.json").read_text()) for name in ("verdict", "plan"))
    assert plan_["embed"] == {"query_prefix": "find: ", "document_prefix": "", "temperature": 0.05}
    assert list(verdict["arms"]) == ["bm25", "base", "base_fusion", "fusion", "tuned"]
    assert {name for name, arm in verdict["arms"].items() if not arm["trained"]} == {"bm25", "base", "base_fusion"}
    assert (verdict["metric"], verdict["task"]) == ("ndcg", "retrieval")
    assert set(verdict["arms"]["tuned"]["summary"]) == {"recall", "mrr", "pooled_recall"}
    protocol = json.loads((run.path / "protocol.json").read_text())
    assert protocol["corpus"]
    scores = [json.loads(x) for x in (run.path / "scores" / "tuned.jsonl").read_text().splitlines()]
    assert all(len(row["retrieved"]) > 70 and row["hits"][1] >= 1 for row in scores)
    assert "vectors of texts" in json.loads((run.path / "forgetting.json").read_text())["reason"]
    report = (run.path / "report.html").read_text()
    assert "the same documents to search" in report
    split = [json.loads(x) for x in (run.path / "data" / "split.jsonl").read_text().splitlines()]
    sides = {}
    for row in split:
        assert sides.setdefault(row["cluster"], row["side"]) == row["side"]


def test_sentence_transformers_loads_the_export_with_equal_vectors(run: api.Result, tmp_path: Path) -> None:
    """In a fresh process, without our code, texts of different lengths in a batch."""
    (check,) = json.loads((run.path / "export.json").read_text())
    assert check["kind"] == "merged"
    assert check["loaded_with"] == "sentence-transformers"
    assert check["largest_difference"] < 1e-5
    assert check["reproduced"]["same"] == check["reproduced"]["rows"] > 0
    script = f"""
import json, torch
from sentence_transformers import SentenceTransformer
texts = [f"lot {{i}}: " + " ".join(["red by the tree"] * (1 + i % 4)) for i in range(9)]
model = SentenceTransformer({str(run.path / "merged")!r}, device="cpu")
assert model.prompts == {{"query": "find: ", "document": ""}}, model.prompts
print(json.dumps([texts, model.encode_query(texts).tolist(), model.encode_document(texts).tolist()]))
"""
    texts, queries, documents = printed_by(script, tmp_path)
    ours = vectors_of(run)
    assert np.allclose(queries, encode(ours, texts, "query"), rtol=0, atol=1e-5)
    assert np.allclose(documents, encode(ours, texts, "document"), rtol=0, atol=1e-5)
    assert not np.allclose(queries, documents, atol=1e-3)


def vectors_of(run: api.Result) -> ChatModel:
    from tunewright.core import records
    from tunewright.core.config import load
    from tunewright.export import export
    from tunewright.model.facts import read_facts
    from tunewright.tokens.template import load_template

    folder = Run(run.path)
    config, chosen = load(folder.config), records.read(folder.plan, Plan)
    facts = read_facts(config.model)
    template = with_prefixes(load_template(Path(facts.path)), config.embed.query_prefix, config.embed.document_prefix)
    return ChatModel(export.trained_model(folder, chosen, facts, torch.float32), template, Decoding(1, ()), chosen)


def test_the_code_of_the_card_searches(
    run: api.Result, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    card = (run.path / "merged" / "README.md").read_text()
    assert "pipeline_tag: sentence-similarity" in card
    assert "library_name: sentence-transformers" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert 'each after "find: "' in code
    monkeypatch.chdir(run.path / "merged")
    exec(code, {})
    assert "tensor" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("chat", "RUN", "hello"), "CONFIG_CONFLICT"),
        (("verify", "RUN", "--at", "http://127.0.0.1:1/v1"), "CONFIG_CONFLICT"),
        (("compare", "RUN", "--result"), "RUN_INCOMPLETE"),
    ],
)
def test_commands_for_models_that_write_are_refused(run: api.Result, words: tuple[str, ...], code: str) -> None:
    done = cli(*(str(run.path) if word == "RUN" else word for word in words), cwd=run.path)
    assert done.returncode == 2
    assert code in done.stderr


@pytest.mark.parametrize(
    ("settings", "code", "what"),
    [
        (["export.to=[gguf]"], "CONFIG_CONFLICT", "gguf"),
        (["export.to=[merged, serve]"], "CONFIG_CONFLICT", "serve"),
        (["adapter.dropout=0.1"], "CONFIG_CONFLICT", "must be the same"),
        (["train.beta=0.3"], "CONFIG_CONFLICT", "train.beta"),
        (["train.pooling=mean"], "CONFIG_CONFLICT", "train.pooling"),
        (["prove.prompts=[x]"], "CONFIG_CONFLICT", "prove.prompts"),
        (["prove.metric=accuracy"], "DATA_FORMAT_MISMATCH", "prove.metric"),
        (["data.instruction=x"], "CONFIG_CONFLICT", "data.instruction"),
        (["forget.apply_best_scale=true"], "CONFIG_CONFLICT", "forget"),
        (["experiments.crossfit=true"], "CONFIG_CONFLICT", "crossfit"),
        (["train.method=sft", "embed.query_prefix=q"], "CONFIG_CONFLICT", "embed.query_prefix"),
        (["sweep.grid={train.lr: [0.1]}"], "CONFIG_CONFLICT", "sweep"),
    ],
)
def test_what_vectors_cannot_do_is_refused_with_its_reason(
    settings: list[str], code: str, what: str, tmp_path: Path, model_folder: Any
) -> None:
    write_pairs(tmp_path / "pairs.jsonl")
    model = ["--model", str(model_folder("llama"))]
    done = cli("run", "pairs.jsonl", *model, "train.method=embed", "train.steps=2", *settings, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert code in done.stderr
    assert what in done.stderr


def test_preview_shows_what_is_read(tmp_path: Path, model_folder: Any) -> None:
    write_pairs(tmp_path / "pairs.jsonl")
    settings = ["train.method=embed", "embed.query_prefix='find: '", "embed.document_prefix='of '"]
    done = cli("preview", "pairs.jsonl", "--model", str(model_folder("llama")), *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "find: lot 0" in done.stdout
    assert "of 0 of them are RED" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", "dora", "rslora"])
def test_other_adapters_and_none_are_trained_and_exported(kind: str, tmp_path: Path, model_folder: Any) -> None:
    settings = {k: v for k, v in SETTINGS.items() if kind != "none" or not k.startswith("adapter")}
    more = {"adapter__kind": kind, "prove__evidence": "plain"}
    data = write_pairs(tmp_path / "pairs.jsonl")
    done = api.run(data, model=str(model_folder("llama")), name="k", root=tmp_path, **{**settings, **more})
    (check,) = json.loads((done.path / "export.json").read_text())
    assert check["largest_difference"] < 1e-4
    assert list(json.loads((done.path / "verdict.json").read_text())["arms"]) == ["bm25", "base", "tuned"]
    steps = [json.loads(x) for x in (done.path / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1]["loss"] < steps[1]["loss"]
