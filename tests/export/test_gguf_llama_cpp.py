"""llama.cpp, by its bindings for Node and for Python, computes with our files what the trained model computes."""

from __future__ import annotations

import json
import math
import random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from export.families import adapted, run_of

from tunewright.core.config import AdapterConfig
from tunewright.data.messages import question
from tunewright.export.gguf.lora import LORA_GGUF
from tunewright.export.gguf.model import GGUF
from tunewright.export.kind import TrainedRun
from tunewright.model import adapters, loading
from tunewright.tokens import rendering

pytestmark = pytest.mark.slow
PACKAGES = ("node-llama-cpp@3.22.1", "@node-llama-cpp/linux-x64@3.22.1")
QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "Write 17 + 25 in words.",
    "  Übersetze: 🚀 rocket\n",
)
NEW_TOKENS = 24


@pytest.fixture(scope="session")
def node() -> Path:
    """A folder in the cache with node-llama-cpp, without its libraries for GPUs."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = loading.cache_folder() / "node-llama-cpp-3.22.1"
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text("{}")
        command = ["npm", "install", "--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund", *PACKAGES]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"node-llama-cpp cannot be installed: {done.stderr.strip()[-200:]}")
        (folder / "complete").touch()
    return folder


@dataclass(frozen=True)
class Files:
    """The embedded model with a random rsLoRA: GGUF files of the base, of the adapter and of both merged; prompts, and
    what transformers answers to them before and after merging."""

    run: TrainedRun
    base: Path
    lora: Path
    merged: Path
    prompts: list[list[int]]
    before: list[list[tuple[int, float]]]
    after: list[list[tuple[int, float]]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    root = tmp_path_factory.mktemp("files")
    run = run_of(loading.resolve(loading.EMBEDDED), root, AdapterConfig(kind="rslora", rank=16, alpha=8.0))
    module = adapted(run)
    for layer in adapters.adapted(module).values():
        layer.lora_B.data *= 0.2  # as large as after training
    prompts = [rendering.for_generation(run.template, question(text)) for text in QUESTIONS]
    lora = LORA_GGUF.write(run, module, root, "float32")
    with adapters.off(module):
        before = [greedy(module, ids, run.template.eos) for ids in prompts]
    plain = loading.load(run.facts.path, torch.float32).module
    base = GGUF.write(run, plain, root, "f32").rename(root / "base.gguf")
    adapters.merge(module)
    after = [greedy(module, ids, run.template.eos) for ids in prompts]
    assert before != after
    return Files(run, base, lora, GGUF.write(run, module, root, "f32"), prompts, before, after)


@torch.inference_mode()
def greedy(module: Any, prompt: list[int], eos: int) -> list[tuple[int, float]]:
    """The likeliest next tokens and the logarithm of the probability of each."""
    ids, answer = list(prompt), []
    while len(answer) < NEW_TOKENS and (not answer or answer[-1][0] != eos):
        logits = module(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        token = int(logits.argmax())
        answer.append((token, float(logits[token])))
        ids.append(token)
    return answer


def varied_texts(count: int, special: list[str]) -> list[str]:
    """Texts that tokenizers split differently if anything about them differs."""
    draw = random.Random(0)
    parts = [
        *(
            "The",
            " quick",
            "don't",
            "I'M",
            " we'Ll",
            "\n",
            "\n\n",
            " ",
            "  ",
            "\t",
            "\r\n",
            "\u00a0",
            "x = 12345",
            "3.14",
        ),
        *(
            "2024-01-31",
            " 7",
            "٣",
            "½",
            "é",
            "ß",
            "жизнь",
            "中文",
            "かな",
            "한국어",
            "हिन्दी",
            "🚀",
            "\U0001f469\u200d\U0001f467",
        ),
        *("...", "!!", "<|", "|>", "foo_bar", "CamelCase", "https://a.b/c?d=e", "{'k': [1, 2]}", "—", "’", "`code`"),
        *(*special, *(s[:-1] for s in special), *(f" {s} " for s in special)),
    ]
    return ["".join(draw.choices(parts, k=draw.randint(1, 12))) for _ in range(count)]


def ask(node: Path, scratch: Path, model: Path, lora: Path | None, files: Files, texts: list[str]) -> dict[str, Any]:
    request = scratch / "request.json"
    request.write_text(
        json.dumps(
            {
                "model": str(model),
                "lora": str(lora) if lora else None,
                "texts": texts,
                "prompts": files.prompts,
                "newTokens": NEW_TOKENS,
                "stop": files.run.template.eos,
            }
        )
    )
    script = Path(__file__).with_name("llama.mjs")
    done = subprocess.run(
        ["node", str(script), str(node), str(request)], capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


@pytest.mark.parametrize("which", ["base", "adapter", "merged"])
def test_node_llama_cpp_answers_as_the_trained_model(which: str, node: Path, files: Files, tmp_path: Path) -> None:
    template = files.run.template
    special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    texts = varied_texts(500, special) if which == "merged" else []
    model, lora = (
        (files.merged, None) if which == "merged" else (files.base, files.lora if which == "adapter" else None)
    )
    actual = ask(node, tmp_path, model, lora, files, texts)
    assert actual["encoded"] == [template.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    for expected, answer in zip(files.before if which == "base" else files.after, actual["answers"], strict=True):
        assert answer["ids"] == [token for token, _ in expected]
        gap = max(abs(math.log(p) - q) for p, (_, q) in zip(answer["probs"], expected, strict=True))
        assert gap <= 1e-3
