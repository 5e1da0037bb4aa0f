"""Decoding without modules (`decoding.FusedState`) compared with decoding by modules (`decoding.State`) and with
transformers' `generate`: CPU time for prompts of 100 tokens and 64 new ones, taking turns; and whether the answers to
real prompts are the same.

python benchmarks/decoding.py [--rounds 7] [--answers 100]      (20 minutes)
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from judging import transformers_generate
from workloads import Workload, rows

from tunewright.cli.demo import rows_file
from tunewright.core.config import AdapterConfig, load
from tunewright.data import dataset
from tunewright.model import adapters, loading
from tunewright.model.decoding.generate import Decoding, complete
from tunewright.model.language_model import LanguageModel
from tunewright.system import heap, machine
from tunewright.tokens import rendering
from tunewright.tokens.template import load_template

HERE = Path(__file__).parent
MODEL = "smollm2-135m"
PROMPTS = Workload("decoding", "", 60, (43, 43), 3, 8, 0.0)
NEW, NEVER = 64, 10**9
BEFORE, AFTER, THEIRS = "modules", "fused", "generate"
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Answer = Callable[[list[list[int]], int], list[list[int]]]


def tuned(dtype: torch.dtype) -> LanguageModel:
    """The model with an adapter that changes its answers."""
    model = loading.load(loading.resolve(MODEL), dtype)
    adapters.attach(model.module, AdapterConfig(rank=16), 0)
    for number, layer in enumerate(adapters.adapted(model.module).values()):
        torch.nn.init.normal_(layer.lora_B, std=0.003, generator=torch.Generator().manual_seed(number))
    assert model.decoding != "modules"
    return dataclasses.replace(model, module=model.module.requires_grad_(False))


def ways(model: LanguageModel, batch: int, stop: int) -> dict[str, Answer]:
    def ours(way: LanguageModel) -> Answer:
        return lambda prompts, new: complete(way, prompts, Decoding(new, (stop,), batch_size=batch))

    def theirs(prompts: list[list[int]], new: int) -> list[list[int]]:
        model.module.generation_config.eos_token_id = None if stop == NEVER else stop
        return transformers_generate(model.module, prompts, new, batch, 0 if stop == NEVER else stop)

    return {BEFORE: ours(dataclasses.replace(model, decoding="modules")), AFTER: ours(model), THEIRS: theirs}


def timed(model: LanguageModel, prompts: list[list[int]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """For each way, seconds of CPU time of each round: in all, and for the first token."""
    answering = ways(model, len(prompts), NEVER)
    seconds: dict[str, dict[str, list[float]]] = {name: {"all": [], "first": []} for name in answering}
    for number in range(-1, rounds):  # the first round warms up
        for name in list(answering) if number % 2 else list(answering)[::-1]:
            for kind, new in (("all", NEW), ("first", 1)):
                start = time.process_time()
                answering[name](prompts, new)
                if number >= 0:
                    seconds[name][kind].append(time.process_time() - start)
    return seconds


def products(model: LanguageModel, batch: int) -> float:
    """CPU time, in milliseconds, of the products of a step with the base weights alone: a step cannot take less."""
    weights = [layer.base.weight for layer in adapters.adapted(model.module).values()] + [model.head_VD]
    inputs = {w.shape[1]: torch.randn(batch, w.shape[1], dtype=w.dtype) for w in weights}
    times: list[float] = []
    for _ in range(8):
        start = time.process_time()
        for w in weights:
            x = inputs[w.shape[1]]
            torch.mv(w, x[0]) if batch == 1 and w.dtype == torch.float32 else F.linear(x, w)
        times.append(1e3 * (time.process_time() - start))
    return statistics.median(times[1:])


def speed_line(label: str, seconds: dict[str, dict[str, list[float]]], batch: int, least: float) -> str:
    def rate(name: str) -> float:
        return statistics.median(batch * NEW / t for t in seconds[name]["all"])

    def step(name: str) -> float:
        return 1e3 * (statistics.median(seconds[name]["all"]) - statistics.median(seconds[name]["first"])) / (NEW - 1)

    def ratio(other: str) -> str:
        values = [b / a for a, b in zip(seconds[AFTER]["all"], seconds[other]["all"], strict=True)]
        return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"

    rates = " | ".join(f"{rate(name):.1f}" for name in (THEIRS, BEFORE, AFTER))
    steps = f"{step(BEFORE):.1f} | {step(AFTER):.1f} | {least:.1f}"
    return f"| {label} | {rates} | {ratio(BEFORE)} | {ratio(THEIRS)} | {steps} |"


def speeds(models: dict[str, LanguageModel], rounds: int) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(loading.resolve(MODEL))
    prompts = [r["ids"][:100] for r in rows(PROMPTS, 8, tokenizer)]
    print(
        "Tokens per second of CPU time, prompt included (median), its ratio to the others (median and range of the "
        "rounds); CPU time of a step after the first token, and of its products with the base weights alone, below "
        "which no step is (milliseconds).\n\n"
        "| dtype, rows, threads | generate | modules | fused | over modules | over generate | step, modules | fused | "
        "products |\n|---|---|---|---|---|---|---|---|---|"
    )
    for dtype, model in models.items():
        for batch, threads in ((1, 1), (8, 1), (1, 2), (8, 2)):
            torch.set_num_threads(threads)
            seconds = timed(model, prompts[:batch], rounds)
            least = products(model, batch)
            print(speed_line(f"{dtype}, {batch}, {threads}", seconds, batch, least), flush=True)


def answers(models: dict[str, LanguageModel], count: int) -> None:
    """Greedy answers to prompts of the demo's rows."""
    template = load_template(loading.resolve(MODEL))
    data = dataset.load(load(None, model=MODEL, data__train=str(rows_file())))
    chats: list[Any] = [data.examples[i] for i in data.sample(count)]
    prompts = [rendering.for_generation(template, chat.prompt) for chat in chats]
    print(
        f"\nThe same tokens in answers of at most {NEW} to {len(prompts)} prompts of the demo's test rows "
        f"({min(map(len, prompts))} to {max(map(len, prompts))} tokens).\n\n"
        "| dtype, adapter, rows of a batch | fused = modules | fused = generate, row by row |\n|---|---|---|"
    )
    torch.set_num_threads(machine.cores())
    for dtype, model in models.items():
        for on in (True, False):
            for layer in adapters.adapted(model.module).values():
                layer.on = on
            alone = ways(model, 1, template.eos)[THEIRS](prompts, NEW)
            for batch in (1, 32):
                way = ways(model, batch, template.eos)
                after, before = way[AFTER](prompts, NEW), way[BEFORE](prompts, NEW)
                same = [sum(a == b for a, b in zip(after, other, strict=True)) for other in (before, alone)]
                print(f"| {dtype}, {'on' if on else 'off'}, {batch} | {same[0]} | {same[1]} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--answers", type=int, default=100)
    asked = parser.parse_args()
    heap.keep()
    models = {name: tuned(dtype) for name, dtype in DTYPES.items()}
    print(
        f"`python benchmarks/decoding.py --rounds {asked.rounds} --answers {asked.answers}`: SmolLM2-135M, LoRA of "
        "rank 16 on every linear layer.\n"
    )
    speeds(models, asked.rounds)
    answers(models, asked.answers)


if __name__ == "__main__":
    main()
