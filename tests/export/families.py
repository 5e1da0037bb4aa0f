"""Tiny models of every family that is written as GGUF, with byte-level BPE vocabularies that split text as real ones.

Weights and vocabularies are the same on every machine, so their files have digests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from build import CHATML, plan_of
from report import records

from tunewright.core.config import AdapterConfig, load
from tunewright.core.run_folder import Run, write_json
from tunewright.export.kind import TrainedRun
from tunewright.model import adapters
from tunewright.model.facts import read_facts
from tunewright.model.loading import load as load_model
from tunewright.tokens.template import load_template
from tunewright.train import checkpoints

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class Family:
    """``split``: the name in llama.cpp of how its vocabulary splits text."""

    model_type: str
    split: str
    settings: dict[str, Any] = field(default_factory=dict)


FAMILIES = {
    "smollm": Family("llama", "smollm", {"tie_word_embeddings": True}),
    "llama3": Family(
        "llama", "llama-bpe", {"rope_parameters": LLAMA3, "head_dim": 32, "max_position_embeddings": 131072}
    ),
    "mistral": Family("mistral", "tekken", {"head_dim": 32, "sliding_window": None}),
    "qwen2": Family("qwen2", "qwen2", {"tie_word_embeddings": True}),
    "qwen3": Family("qwen3", "qwen2", {"head_dim": 32, "tie_word_embeddings": False, "intermediate_size": 80}),
}


def pre_tokenizer(split: str) -> Any:
    """As in the tokenizer.json of the families; the expressions are those of transformers."""
    from tokenizers import Regex, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if split == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if split == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    pattern = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[split]), behavior="isolated")
    return pre_tokenizers.Sequence([pattern, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


TEXTS = [
    "The quick brown fox jumps over the lazy dog, and it's not the first time that they'll do so in 2024 or 1999.",
    "def f(x):\n    return x + 12345\n\n\nclass A:\n\tpass\r\n",
    "Größe, naïve, ÉCOLE; жизнь и время; 中文字符 和 かな; हिन्दी; 🚀🚀 ✅ ... !!!",
    "What is the capital of France? The capital of France is Paris. I'm sure WE'RE going to the  city.   ",
] * 8


def bpe(split: str, vocabulary: int = 400) -> Any:
    """A byte-level BPE tokenizer with ChatML's special tokens, one that is not special, and one to pad with."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(ignore_merges=split in ("llama-bpe", "tekken")))
    core.normalizer = normalizers.NFC() if split == "qwen2" else None
    core.pre_tokenizer = pre_tokenizer(split)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(TEXTS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    tokenizer.chat_template = CHATML
    return tokenizer


def fill(module: Any) -> Any:
    """The same numbers on every machine, none of them equal to a number of fewer bits."""
    at = 0
    with torch.no_grad():
        for parameter in module.parameters():
            count = parameter.numel()
            numbers = (torch.arange(at, at + count, dtype=torch.int64) * 2654435761 % 2**24).double() / 2**23 - 1
            scaled = numbers * (0.25 if parameter.ndim > 1 else 0.05) + float(parameter.ndim == 1)
            parameter.copy_(scaled.view(parameter.shape))
            at += count
    return module


def save(name: str, folder: Path) -> Path:
    """The model of a family and its tokenizer, with three embeddings that no token has."""
    from transformers import AutoConfig, AutoModelForCausalLM

    family = FAMILIES[name]
    tokenizer = bpe(family.split)
    shape = {
        "vocab_size": len(tokenizer) + 3,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = AutoConfig.for_model(family.model_type, **{**shape, **family.settings})
    fill(AutoModelForCausalLM.from_config(config, dtype=torch.float32)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run_of(folder: Path, root: Path, adapter: AdapterConfig | None = None, **settings: Any) -> TrainedRun:
    """A run of the model in the folder, without weights yet."""
    config = load(None, model=str(folder), **settings)
    plan = plan_of(adapter=adapter or AdapterConfig(rank=4, alpha=8.0), threads=1)
    return TrainedRun(Run(root / "one"), config, plan, read_facts(str(folder)), load_template(folder))


def adapted(source: TrainedRun) -> Any:
    """The run's base in float32 with a random adapter on it."""
    model = load_model(source.facts.path, torch.float32)
    adapters.attach(model.module, source.plan.adapter, 0)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapters.trainable(model.module).values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return model.module


def trained_run(folder: Path, root: Path, adapter: AdapterConfig | None = None, **settings: Any) -> TrainedRun:
    """A run with trained weights."""
    source = run_of(folder, root, adapter, **settings)
    source.run.checkpoints.mkdir(parents=True)
    sha256 = checkpoints.save_weights(source.run.weights, adapters.trainable(adapted(source)))
    write_json(source.run.training, {**records.training(), "weights_sha256": sha256})
    return source
