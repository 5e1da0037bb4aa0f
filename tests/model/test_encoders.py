"""Encoders: padding changes nothing, texts are those of the tokenizer, folders are read, the rest is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoders as tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_encoders import SEP, TEMPLATE

from tunewright.core.errors import TunewrightError
from tunewright.data.messages import Chat, Message, Prompt, question
from tunewright.model import forward, loading
from tunewright.model.encoders import folder, passes
from tunewright.model.facts import read_facts
from tunewright.tokens import encoder_text, rendering
from tunewright.tokens.packing import to_microbatch
from tunewright.tokens.sequences import head_sequence
from tunewright.tokens.template import load_template

TEXTS = ["red", "a house by the river", "the tree of seven rivers and a stone", "x y"]
ALL = list(tiny.KINDS)


def microbatch(texts: list[str] = TEXTS) -> Any:
    ids = [rendering.for_generation(TEMPLATE, question(text)) for text in texts]
    return to_microbatch([head_sequence(own, SEP, i) for i, own in enumerate(ids)], "padded")


@pytest.mark.parametrize("kind", ALL)
def test_a_row_beside_others_is_computed_as_alone(kind: str) -> None:
    model = tiny.encoder(kind)
    with torch.no_grad():
        hidden_BTD, seen_BT = passes.encoded(model.module, microbatch(), model.device)
        for b, text in enumerate(TEXTS):
            (alone_TD,) = passes.encoded(model.module, microbatch([text]), model.device)[0]
            assert seen_BT[b].sum() == len(alone_TD)
            assert torch.allclose(hidden_BTD[b, : len(alone_TD)], alone_TD, rtol=0, atol=1e-10)
        together = forward.hidden(model, microbatch())
        alone = torch.cat([forward.hidden(model, microbatch([text])) for text in TEXTS])
        assert torch.allclose(together, alone, rtol=0, atol=1e-10), "at the last token"


@pytest.mark.parametrize("kind", ALL)
def test_transformers_computes_the_same_from_the_tokenizers_own_batch(kind: str) -> None:
    model = tiny.encoder(kind)
    inputs = TEMPLATE.tokenizer(TEXTS, padding=True, return_tensors="pt")
    if kind != "bert":
        del inputs["token_type_ids"]
    if kind in ("roberta", "mpnet"):
        inputs["input_ids"][inputs["attention_mask"] == 0] = 1
    with torch.no_grad():
        theirs_BTD = model.module(**inputs).last_hidden_state
        ours_BTD, seen_BT = passes.encoded(model.module, microbatch(), model.device)
    assert torch.allclose(ours_BTD[seen_BT], theirs_BTD[seen_BT], rtol=0, atol=1e-12)


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_pooling_is_that_of_sentence_transformers(pooling: Any) -> None:
    pooler = pytest.importorskip("sentence_transformers.sentence_transformer.modules.pooling")
    names = {"cls": "cls", "mean": "mean", "last": "lasttoken"}
    model = tiny.encoder()
    with torch.no_grad():
        hidden_BTD, seen_BT = passes.encoded(model.module, microbatch(), model.device)
        given = {"token_embeddings": hidden_BTD, "attention_mask": seen_BT.long()}
        theirs_BD = pooler.Pooling(32, pooling_mode=names[pooling])(given)["sentence_embedding"]
        ours_BD = passes.pooled(model.module, microbatch(), model.device, pooling)
    assert torch.allclose(ours_BD, theirs_BD, rtol=0, atol=1e-12)


PAIR = "premise: a house\nhypothesis: it is red\nand old"


@pytest.mark.parametrize(
    ("message", "texts"),
    [
        ("a house", ["a house"]),
        (PAIR, ["a house", "it is red\nand old"]),
        ("sentence1: \nsentence2: b", ["", "b"]),
        ("the premise: a\nhypothesis: b", ["the premise: a\nhypothesis: b"]),
    ],
)
def test_a_prompt_is_the_tokenizers_text_or_pair(message: str, texts: list[str]) -> None:
    expected = TEMPLATE.tokenizer(*texts)
    ids = rendering.for_generation(TEMPLATE, question(message, "Warm or cold?"))
    assert ids == expected["input_ids"], "and the system message is left out"
    types_BT = passes.token_types(np.array([[*ids, 0, 0]]), np.array([len(ids)]))
    assert types_BT[0, : len(ids)].tolist() == expected["token_type_ids"]
    assert not types_BT[0, len(ids) :].any()


def test_a_pair_reaches_the_model_with_its_token_types() -> None:
    model = tiny.encoder()
    texts = encoder_text.texts(question(PAIR))
    with torch.no_grad():
        theirs_BTD = model.module(**TEMPLATE.tokenizer(*texts, return_tensors="pt")).last_hidden_state
        ours_BTD, _ = passes.encoded(model.module, microbatch([PAIR]), model.device)
    assert torch.allclose(ours_BTD, theirs_BTD, rtol=0, atol=1e-12)


@given(st.lists(st.sampled_from(["[SEP]", "[CLS]", "a", " ", "[", "]", "SEP]"]), min_size=1, max_size=6))
def test_a_special_token_in_a_text_is_plain_text(parts: list[str]) -> None:
    ids = rendering.for_generation(TEMPLATE, question("".join(parts)))
    assert ids[0] == tiny.CLS
    assert ids[-1] == SEP
    assert not {*ids[1:-1]} & {*TEMPLATE.tokenizer.all_special_ids}
    assert TEMPLATE.tokenizer.decode(ids[1:-1]) == "".join(parts)


def test_what_an_encoder_cannot_read_is_refused() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    with pytest.raises(TunewrightError, match="tools") as caught:
        rendering.for_generation(TEMPLATE, Prompt((Message("user", "a"),), (tool,)))
    assert caught.value.code == "DATA_FORM_UNSUPPORTED"

    def row(system: str, n: int) -> Chat:
        return Chat((Message("system", system), Message("user", "a"), Message("assistant", "b")), f"x:{n}")

    encoder_text.require_one_instruction([row("same", 1), row("same", 2)])
    with pytest.raises(TunewrightError, match=r"x:3.*differs"):
        encoder_text.require_one_instruction([row("same", 1), row("same", 2), row("other", 3)])


@pytest.mark.parametrize("kind", ALL)
def test_a_folder_is_read(kind: str, tmp_path: Path) -> None:
    made = tiny.saved(tmp_path, kind)
    facts = read_facts(str(made))
    assert facts.encoder
    assert (facts.shareable, facts.packable, facts.fused) == (False, False, False)
    assert facts.context == 512, "RoBERTa's positions begin behind that of padding"
    assert (facts.hidden, facts.layers, facts.pooling) == (32, 3 if kind == "modernbert" else 2, "")
    model = loading.load(made, torch.float32)
    assert model.encoder
    template = load_template(made)
    assert template.encoder
    assert template.sha256 != tiny.Template(template.tokenizer).sha256
    longest = rendering.for_generation(template, question("a" * 510))
    with torch.no_grad():
        model.module(torch.tensor([longest]))
        same = torch.cat([p.flatten() for p in model.module.parameters()])
    assert torch.equal(same, torch.cat([p.flatten() for p in tiny.module(kind).parameters()]))


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "word_embedding_dimension": 4}, "mean"),
        ({"pooling_mode_cls_token": True, "include_prompt": True}, "cls"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": "max"}, None),
        ({"pooling_mode": ["cls", "mean"]}, None),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, None),
        ({"pooling_mode_max_tokens": True}, None),
        ([], None),
    ],
)
def test_pooling_is_read_from_the_folder(config: Any, pooling: str | None, tmp_path: Path) -> None:
    assert folder.own_pooling(tmp_path) is None
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert folder.own_pooling(tmp_path) == pooling


def test_heads_of_pre_training_are_left_out_and_missing_weights_are_not(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import BertForMaskedLM

    torch.manual_seed(0)
    whole = BertForMaskedLM(tiny.config("bert"))
    whole.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    model = loading.load(tmp_path, torch.float32)
    for name, p in model.module.named_parameters():
        assert torch.equal(p, whole.bert.get_parameter(name)), name
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    (key, *_) = [k for k in tensors if "query.weight" in k]
    for changed in (
        {k: t for k, t in tensors.items() if k != key},
        {**tensors, key.replace("layer.0", "layer.7"): tensors[key].clone()},
    ):
        save_file(changed, file, metadata={"format": "pt"})
        with pytest.raises(TunewrightError) as caught:
            loading.load(tmp_path, torch.float32)
        assert caught.value.code == "MODEL_INDEX_MISMATCH"


def test_a_decoder_of_the_family_is_no_encoder() -> None:
    from transformers import AutoConfig

    assert encoder_text.is_encoder(tiny.config("bert"))
    assert not encoder_text.is_encoder(tiny.config("bert", is_decoder=True))
    assert not encoder_text.is_encoder(AutoConfig.for_model("bart"))
    assert not encoder_text.is_encoder(AutoConfig.for_model("llama"))
