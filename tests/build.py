"""Building blocks of tests: tiny models and tokenizers (random weights, real architectures, a byte-level vocabulary),
rows, plans, steps, and the command line, in this process or in a new one."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from tunewright.cli import main
from tunewright.core.config import AdapterConfig, Plan, Recompute
from tunewright.core.records import AdapterNote
from tunewright.core.run_folder import Run
from tunewright.model import adapters, forward, language_model
from tunewright.model.attention import interface
from tunewright.model.language_model import LanguageModel
from tunewright.tokens import packing
from tunewright.tokens.sequences import TokenSequence, TrainRow, single
from tunewright.train.loop import TrainingInputs
from tunewright.train.step import Learner, make_learner, take_step

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
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
    """A byte-level tokenizer in which the special tokens of a stock template are single tokens."""
    actual = set(
        re.findall(
            r"<\|[^|<>{}\s]+\|>|<｜[^｜<>{}]+｜>|<(?:start|end)_of_turn>|<\w+\|>|<\|\w+>|</?s>|\[/?INST\]|<end_of_utterance>",
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
            if e in actual
        ),
        "</s>",
    )
    return byte_tokenizer(
        chat_template, eos, "<bos>" if "bos_token" in chat_template else None, tuple(sorted(actual | {eos}))
    )


def stock_templates() -> list[Path]:
    """The chat templates that TRL ships, without its changed versions for training."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    files = (p for place in spec.submodule_search_locations for p in Path(place, "chat_templates").glob("*.jinja"))
    return sorted(p for p in files if not p.stem.endswith("_training"))


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
    from transformers import AutoModelForCausalLM

    interface.register()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(kind, **more), dtype=torch.float32)
    for parameter in model.parameters():  # larger than usual initial weights, so that logits differ clearly
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2 if parameter.ndim > 1 else 0.05)
    model = model.to(dtype or torch.float32)
    return model.requires_grad_(False).eval()


def tiny_lm(kind: str = "llama", dtype: Any = None, seed: int = 0, **more: Any) -> LanguageModel:
    return language_model.of(tiny_model(kind, dtype, seed, **more))


LORA = AdapterConfig(rank=4, alpha=8.0)


def rows(count: int, seed: int = 0, longest: int = 30) -> list[TokenSequence]:
    """Ragged rows of random tokens; the last third of each is supervised."""
    draw = np.random.default_rng(seed)
    actual = []
    for i in range(count):
        n = int(draw.integers(4, longest))
        first = max(1, n - n // 3 - 1)
        actual.append(
            TokenSequence(
                tuple(int(t) for t in draw.integers(0, 256, n)), tuple(float(t >= first) for t in range(n)), i
            )
        )
    return actual


@st.composite
def relatives(draw: st.DrawFn, most: int = 8, longest: int = 20) -> list[tuple[int, ...]]:
    """Rows with common prefixes: equal rows, prefixes of other rows, branches of any depth."""
    actual: list[tuple[int, ...]] = []
    for _ in range(draw(st.integers(1, most))):
        relative = draw(st.sampled_from(actual)) if actual and draw(st.booleans()) else ()
        kept = relative[: draw(st.integers(0, len(relative)))]
        own = draw(st.lists(st.integers(0, 3), min_size=0 if kept else 1, max_size=longest))
        actual.append((*kept, *own))
    return actual


def train_rows(count: int, seed: int = 0, longest: int = 30) -> list[TrainRow]:
    """`rows`, each as a training row."""
    return [single(r) for r in rows(count, seed, longest)]


def plan_of(**more: Any) -> Plan:
    base: dict[str, Any] = {
        "method": "sft",
        "rows": 8,
        "supervised_tokens": 1,
        "tokens": 1,
        "steps": 5,
        "epochs": 1.0,
        "batch_size": 4,
        "tokens_per_pass": 4096,
        "max_length": 512,
        "max_new_tokens": 16,
        "decode_batch_size": 4,
        "layout": "packed",
        "kernels": "transformers",
        "gradient_checkpointing": "none",
        "dtype": "float32",
        "lr": 1e-2,
        "schedule": "cosine",
        "warmup_steps": 2,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "eval_every": 2,
        "patience": 0,
        "checkpoint_every": 2,
        "checkpoint_keep": 2,
        "adapter": LORA,
        "seed": 3,
        "threads": 1,
        "reasons": {},
    }
    return Plan.model_validate({**base, **more})


def learner_of(module: Any, plan: Plan) -> Learner:
    """For a tiny model with an adapter."""
    return make_learner(LanguageModel(module, plain_head=True), plan)


def steps(module: Any, data: list[TrainRow], plan: Plan) -> list[float]:
    """The losses of the plan's steps."""
    student = learner_of(module, plan)
    return [take_step(student, data, plan, s).loss for s in range(plan.steps)]


def training_of(
    module: Any, plan: Plan, data: list[TrainRow], dev: list[TrainRow], run: Run, hashes: dict[str, str] | None = None
) -> TrainingInputs:
    """For a tiny model with an adapter."""
    return TrainingInputs(LanguageModel(module, plain_head=True), plan, data, dev, run, hashes or {"data": "d"})


def exact_norms(model: Any) -> None:
    """transformers' norms compute in float32 whatever the model's dtype, which hides differences below 1e-7."""

    def exact(norm: Any, x: torch.Tensor) -> torch.Tensor:
        unit = x * torch.rsqrt(
            x.square().mean(-1, keepdim=True) + getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
        )
        return unit * (1 + norm.weight if type(norm).__name__.startswith("Gemma") else norm.weight)

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = functools.partial(exact, module)


def gradients(
    model: LanguageModel, microbatches: list[packing.Microbatch], recompute: Recompute = "none"
) -> tuple[float, dict[str, torch.Tensor]]:
    model.module.zero_grad(set_to_none=True)
    total = 0.0
    for microbatch in microbatches:
        loss = forward.loss(model, microbatch, recompute)
        loss.backward()
        total += float(loss.detach())
    return total, {n: p.grad.clone() for n, p in adapters.trainable(model.module).items()}


def with_adapter(kind: str, dtype: torch.dtype, **shape: Any) -> LanguageModel:
    model = tiny_lm(kind, dtype=dtype, **shape)
    if dtype == torch.float64:
        exact_norms(model.module)
    adapters.attach(model.module, LORA, 1)
    for p in adapters.trainable(model.module).values():  # B starts at zero, which would hide A's gradient
        torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(p.numel()))
    return model


# -- runs


def write_chat_rows(path: Path, count: int, label: bool = False) -> Path:
    """A JSONL file of learnable chat rows: the answer is the question's word in capitals, or a label of it."""
    rows = []
    for i in range(count):
        word, other = WORDS[i % 10], WORDS[(i * 7 + i // 10) % 10]
        answer = ("warm" if i % 10 in (0, 3, 4) else "cold") if label else word.upper()
        question = f"item {i}: {word} by the {other}, lot {i * 37 % 101}"
        rows.append({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


Rows = Callable[..., Path]  # the fixture `chat_rows`
Folder = Callable[[str], Path]  # the fixture `model_folder`
# A run that takes seconds: for the command line, and for `tw.run`.
SHORT_RUN: dict[str, Any] = {
    "train.steps": 6,
    "train.batch_size": 8,
    "train.eval_every": 3,
    "prove.max_new_tokens": 6,
    "prove.few_shot": [1, 2],
    "adapter.rank": 4,
    "adapter.alpha": 8,
    "train.dtype": "float32",
    "threads": 1,
}
FLAGS = [f"{key}={value}" for key, value in SHORT_RUN.items()]
QUICK = {key.replace(".", "__"): value for key, value in SHORT_RUN.items()}


@dataclass(frozen=True)
class Done:
    """The result of a command: exit status and output."""

    returncode: int
    stdout: str
    stderr: str


def printed_by(script: str, cwd: Path) -> Any:
    """What a script prints as JSON in its last line, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def cli(*words: str, cwd: Path) -> Done:
    """``tunewright WORDS`` in this process, which saves the seconds of importing torch.

    What the command changes in a process (arguments, folder, umask, the handler of SIGTERM, torch's threads) is
    restored.
    """
    out, err, status = io.StringIO(), io.StringIO(), 0
    arguments, handler, threads = sys.argv, signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    mask = os.umask(0o022)
    sys.argv = ["tunewright", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(cwd):
            main.main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    finally:
        sys.argv = arguments
        os.umask(mask)
        signal.signal(signal.SIGTERM, handler)
        torch.set_num_threads(threads)
    return Done(status, out.getvalue(), err.getvalue())


def process(*words: str, cwd: Path, **more: str) -> Done:
    """``python WORDS`` in a new process, with ``more`` in its environment."""
    command, environment = [sys.executable, *words], {**os.environ, **more}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def read(run: Path, name: str) -> Any:
    """A JSON file of a run folder."""
    return json.loads((run / f"{name}.json").read_text(encoding="utf-8"))


def read_lines(run: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a JSONL file of a run folder."""
    return [json.loads(line) for line in (run / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def copied(root: Path, to: Path) -> Path:
    """A copy of a folder with rows.jsonl and runs/r; the config of the copied run reads the copied rows."""
    shutil.copytree(root, to, dirs_exist_ok=True)
    config = to / "runs" / "r" / "config.yaml"
    config.write_text(config.read_text().replace(str(root), str(to)))
    return to / "runs" / "r"


def adapter_note(base_sha256: str) -> AdapterNote:
    return AdapterNote(base="base", base_sha256=base_sha256, template_sha256="template", run="r", files={})


def flip(file: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def writer(folder: Path) -> subprocess.Popen[str]:
    """Another process, which has the run folder open for writing until it is killed."""
    code = f"""
import pathlib, time
from tunewright.core import run_folder
with run_folder.writing(run_folder.Run(pathlib.Path({str(folder)!r}))):
    print("in", flush=True)
    time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "in\n"
    return other
