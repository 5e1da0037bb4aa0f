"""Search by words and by meaning."""

from __future__ import annotations

from pathlib import Path

import torch
from build import byte_tokenizer

from tunewright.core.config import ProveConfig
from tunewright.data.messages import Chat, Message, Text
from tunewright.data.task import detect_task
from tunewright.judge.arms import bm25, families
from tunewright.judge.arms.families import ArmInputs
from tunewright.judge.search import embedding_index


def chat(question: str, answer: str) -> Chat:
    return Chat((Message("user", question), Message("assistant", answer)), "x:1")


def test_the_nearest_rows_are_near_and_never_the_row_itself() -> None:
    train = [
        chat(f"where is the {thing}?", thing)
        for thing in ("red house", "blue house", "green tree", "old river", "stone dog")
    ]
    shots = bm25.nearest(train, 2).shots(chat("is the house red or blue?", ""))
    assert {s.target for s in shots} == {"red house", "blue house"}
    assert train[0] not in bm25.nearest(train, 4).shots(train[0])
    assert len(bm25.nearest(train, 3).shots(chat("zzz", ""))) == 3  # no shared word: the first rows


def test_passages_lose_nothing() -> None:
    text = "\n\n".join(f"Paragraph {i}. " + "It says this. " * (i * 9) for i in range(12)) + "\n\n" + "x" * 3000
    passages = bm25.passages([Text(text, "d")], 400)
    assert "".join("".join(p.split()) for p in passages) == "".join(text.split())
    assert max(map(len, passages)) <= 401


def test_an_encoder_is_an_index(tmp_path: Path) -> None:
    """With a small random BERT, a text is nearest to itself, however it is padded; the arms use it instead of words."""
    from transformers import AutoModel, BertConfig

    tokenizer = byte_tokenizer()
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    AutoModel.from_config(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = ["a short one", "something rather longer than the others are", "zebra", "a short two"]
    index = embedding_index.indexer(tmp_path)(texts)
    assert [index.best(t, 1) for t in texts] == [[0], [1], [2], [3]]
    assert torch.allclose(index.vector_ND, torch.cat([index.encode([t]) for t in texts]), atol=1e-6)
    train = [chat(t, t.upper()) for t in texts]
    task = detect_task(train)
    sources = ArmInputs(tuple(train), (Text("zebra crossing", "d"),), embedding_index.indexer(tmp_path))
    arms = families.arms(task, sources, ProveConfig(few_shot=[2]), 8)
    assert "zebra crossing" in arms["retrieval"][0].prompt(train[2]).messages[-1].content
    assert len(arms["nearest"][0].prompt(train[2]).messages) == 5
