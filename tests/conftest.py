"""Tiny real models and tokenizers: random weights, real architectures, a byte-level vocabulary."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # no test reaches for the network
os.environ["OMP_NUM_THREADS"] = "1"  # tiny tensors: a second thread only waits

CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
WORDS = ["red", "green", "blue", "cat", "dog", "house", "tree", "seven", "river", "stone"]


def byte_tokenizer(
    chat_template: str | None = CHATML,
    eos: str = "<|im_end|>",
    bos: str | None = None,
    special: tuple[str, ...] = ("<|im_start|>", "<|im_end|>"),
) -> Any:
    """Every byte is a token; the special strings are one token each."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=eos,
        pad_token=eos,
        bos_token=bos,
        additional_special_tokens=[s for s in special if s not in (eos, bos)],
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def stock_tokenizer(chat_template: str) -> Any:
    """A byte-level tokenizer in which the special tokens that a stock template spells are single tokens."""
    found = set(
        re.findall(
            r"<\|[^|<>{}\s]+\|>|<｜[^｜<>{}]+｜>|<(?:start|end)_of_turn>|<turn\|>|<\|turn>|</?s>|\[/?INST\]|<end_of_utterance>",
            chat_template,
        )
    )
    eos = next(
        (
            e
            for e in (
                "<|im_end|>",
                "<|eot_id|>",
                "<end_of_turn>",
                "<turn|>",
                "<|END_OF_TURN_TOKEN|>",
                "<|return|>",
                "<|end|>",
                "<｜end▁of▁sentence｜>",
                "<end_of_utterance>",
                "</s>",
            )
            if e in found
        ),
        "</s>",
    )
    return byte_tokenizer(chat_template, eos, "<bos>" if "bos_token" in chat_template else None, tuple(sorted(found | {eos})))


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "gemma3_text": {
        "num_key_value_heads": 1,
        "head_dim": 16,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}


def tiny_config(kind: str = "llama", vocabulary: int = 260, **more: Any) -> Any:
    from transformers import AutoConfig

    shape = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 2048,
        "eos_token_id": 256,
        "bos_token_id": None,
        "pad_token_id": 256,
    }
    return AutoConfig.for_model(kind, **{**shape, **ARCHITECTURES.get(kind, {}), **more})


def tiny_model(kind: str = "llama", dtype: Any = None, seed: int = 0, **more: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    from tunewright import attention, models

    attention.register()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(kind, **more), dtype=torch.float32)
    for parameter in model.parameters():  # larger than the usual start, so that logits differ clearly
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2 if parameter.ndim > 1 else 0.05)
    model = model.to(dtype or torch.float32)
    model.requires_grad_(False).eval()
    model.plain_head = models._plain_head(model)
    return model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A saved tiny model of an architecture, with its tokenizer."""
    made: dict[str, Path] = {}

    def folder(kind: str = "llama") -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(f"tiny-{kind}")
            tokenizer = byte_tokenizer()
            tiny_model(kind, vocabulary=len(tokenizer)).save_pretrained(made[kind])
            tokenizer.save_pretrained(made[kind])
        return made[kind]

    return folder


@pytest.fixture
def chat_rows(tmp_path: Path) -> Callable[..., Path]:
    """A JSONL file of learnable chat rows: the answer is the question's word in capitals."""

    def write(count: int = 60, name: str = "rows.jsonl", label: bool = False) -> Path:
        rows = []
        for i in range(count):
            word, other = WORDS[i % 10], WORDS[(i * 7 + i // 10) % 10]
            answer = ("warm" if i % 10 in (0, 3, 4) else "cold") if label else word.upper()
            rows.append(
                {
                    "messages": [
                        {"role": "user", "content": f"item {i}: {word} by the {other}, lot {i * 37 % 101}"},
                        {"role": "assistant", "content": answer},
                    ]
                }
            )
        path = tmp_path / name
        path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        return path

    return write


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table of known silent bugs, where their tests were run."""
    reports = [r for r in terminalreporter.getreports("passed") if "test_faults.py" in r.nodeid]
    if not reports or (terminalreporter.config.option.verbose < 0 and len(reports) < 30):
        return
    from test_faults import FAULTS

    passed = {r.nodeid for r in reports}

    def says(test: str, fault: Any) -> bool:
        return any(f"{test}[{fault.number}-" in nodeid for nodeid in passed)

    terminalreporter.section("known silent bugs: planted, and killed by their property")
    for fault in FAULTS:
        state = "refused" if fault.plant is None else "killed" if says("planted_bug_is_killed", fault) else "NOT KILLED"
        holds = "" if says("the_property_holds", fault) else "; THE PROPERTY DOES NOT HOLD"
        terminalreporter.write_line(f"{fault.number:>3}  {state:<8} {fault.bug}{holds}")
